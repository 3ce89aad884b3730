"""Build wheel and sdist, install each into a clean environment, alone and with each extra, and import what is there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
import venv
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


def run(*command: str | Path) -> None:
    """Run a command; show its output, and stop with it if it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    print(done.stdout, end="")


def check(artifact: Path, extra: str) -> None:
    """Install *artifact* with *extra* into a new environment; import it and load what its extras promise."""
    print(f"{artifact.name}{f'[{extra}]' if extra else ''}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        wanted = f"msgbus[{extra}] @ {artifact.as_uri()}" if extra else str(artifact)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted)
        run(python, "-c", PROBE)
        run(python, "-m", "msgbus.cli", "version")


def main() -> None:
    """Build, install, import."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory() as out:
        run(sys.executable, "-m", "build", "--outdir", out)
        (wheel,) = Path(out).glob("*.whl")
        (sdist,) = Path(out).glob("*.tar.gz")
        check(sdist, "")
        for extra in ["", *extras]:
            check(wheel, extra)


if __name__ == "__main__":
    main()
