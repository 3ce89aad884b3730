"""Build wheel and sdist, install each into a clean environment, alone and with each extra, and import what is there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import importlib.metadata as m, sys
import msgbus, msgbus.testing.clock
clients = {"kombu", "amqp", "aiokafka", "nats", "boto3", "redis", "psycopg"}
heavy = (clients | {"pydantic_settings", "typer"}) & set(sys.modules)
assert not heavy, f"importing msgbus pulled in {heavy}"
from msgbus.errors import MissingExtra
from msgbus._registry import adapter_class, store_class
for group, load in (("msgbus.adapters", adapter_class), ("msgbus.stores", store_class)):
    for entry in m.entry_points(group=group):
        try:
            load(msgbus.BusURL(entry.name))
            print("  ok", entry.name, group.partition(".")[2])
        except MissingExtra as exc:
            print("  --", exc)
"""


def run(*command: str | Path) -> str:
    """Run a command; return its output, or stop with it if it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(artifact: Path, extra: str) -> None:
    """Install *artifact* with *extra* into a new environment; import it and load what its extras promise."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder)
        python = Path(folder, "bin", "python")
        wanted = f"msgbus[{extra}] @ {artifact.as_uri()}" if extra else str(artifact)
        # This environment's pip: giving each its own takes longer than the rest.
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wanted)
        found = run(python, "-c", PROBE) + run(python, "-m", "msgbus.cli", "version")
        print(f"{artifact.name}{f'[{extra}]' if extra else ''}\n{found}", end="", flush=True)


def main() -> None:
    """Build, install, import."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory() as out:
        print(run(sys.executable, "-m", "build", "--outdir", out), end="", flush=True)
        (wheel,) = Path(out).glob("*.whl")
        (sdist,) = Path(out).glob("*.tar.gz")
        cases = [(sdist, ""), (wheel, ""), *((wheel, extra) for extra in extras)]
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(check, *zip(*cases, strict=True)))


if __name__ == "__main__":
    main()
