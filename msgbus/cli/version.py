"""``msgbus version``: what is installed."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points, requires
from typing import Any

import typer

from msgbus._version import __version__
from msgbus.cli import _options as options

app = typer.Typer()

_REQUIREMENT = re.compile(r"""([A-Za-z0-9._-]+).*\bextra\s*==\s*["']([^"']+)["']""")


@app.command("version")
def version(as_json: options.AsJSON = False) -> None:
    """Show the version, and which brokers and idempotency stores are installed.

    Example: msgbus version
    """
    missing = _missing_by_extra()
    data = {
        "msgbus": __version__,
        "python": platform.python_version(),
        "adapters": _installed("msgbus.adapters", missing),
        "stores": _installed("msgbus.stores", missing),
    }
    if as_json:
        from msgbus.cli._output import print_json  # noqa: PLC0415 - Rich takes longer than all the rest

        print_json(data)
        return
    lines = [f"msgbus {__version__}, Python {platform.python_version()}"]
    for what in ("adapters", "stores"):
        lines.append(f"{what}:")
        lines += [f"  {line}" for line in _lines(data[what])]
    sys.stdout.write("\n".join(lines) + "\n")


def _lines(entries: Any) -> list[str]:
    width = max((len(entry["scheme"]) for entry in entries), default=0) + 3
    return [
        f"{entry['scheme'] + '://':{width}}  "
        + (f"needs {', '.join(entry['missing'])}: {entry['install']}" if entry["missing"] else entry["package"])
        for entry in entries
    ]


def _installed(group: str, missing: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    return [_entry(entry, missing) for entry in sorted(entry_points(group=group), key=lambda e: e.name)]


def _entry(entry: EntryPoint, missing: Mapping[str, list[str]]) -> dict[str, Any]:
    """Describe an adapter without importing it, which would import its client library."""
    package = entry.dist.name if entry.dist is not None else "unknown"
    ours = package == "msgbus"
    extra = entry.module.partition(".")[0].removeprefix("msgbus_") if ours else ""
    lacks = missing.get(extra, [])
    install = f"pip install 'msgbus[{extra}]'" if lacks else ""
    return {"scheme": entry.name, "package": entry.module, "missing": lacks, "install": install}


def _missing_by_extra() -> dict[str, list[str]]:
    """Return, for each of our extras, its packages that are not installed."""
    missing: dict[str, list[str]] = {}
    for requirement in requires("msgbus") or ():
        if (match := _REQUIREMENT.match(requirement)) and not _is_installed(match[1]):
            missing.setdefault(match[2], []).append(match[1])
    return missing


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
