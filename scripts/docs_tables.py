"""Write the tables of the documentation that the code knows best. ``--check`` only tells whether they are current."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from msgbus import _config, _message
from msgbus._registry import adapter_class, adapter_schemes
from msgbus.adapter import Adapter, AdapterConfig, BusURL, Capabilities
from msgbus.errors import MissingExtra

DOCS = Path(__file__).parents[1] / "docs"
NO = "\N{EN DASH}"
URLS = {"memory": "memory://", "sqlite": "sqlite:///msgbus.db", "sqs": "sqs://eu-central-1"}
NEVER = 10 * 365 * 86_400.0
"""A delay of so many seconds is as good as any."""


def main() -> int:
    """Rewrite or check the pages; return the exit code."""
    stale = []
    try:
        _adapters()
    except MissingExtra as exc:
        print(f"the tables need all adapters: {exc}")
        return 3
    for name, table in (("capabilities", capabilities), ("settings", settings), ("headers", headers)):
        page = next(p for p in sorted(DOCS.glob("**/*.md")) if f"<!-- begin: {name} -->" in p.read_text())
        old = page.read_text()
        new = replaced(old, name, "\n".join(table()))
        if new != old:
            stale.append(str(page))
            if "--check" not in sys.argv:
                page.write_text(new)
    if stale and "--check" in sys.argv:
        print(f"stale, run python scripts/docs_tables.py: {', '.join(stale)}")
        return 1
    return 0


def replaced(text: str, name: str, table: str) -> str:
    """Return *text* with *table* between the markers of *name*."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def capabilities() -> Iterator[str]:
    """Yield the table of what each adapter can do."""
    adapters = sorted(_adapters(), key=_order)
    meaning = attributes(Capabilities)
    yield f"| Capability | {' | '.join(map(_broker, adapters))} | Meaning |"
    yield f"|---|{'---|' * len(adapters)}---|"
    for field in fields(Capabilities):
        values = " | ".join(_show(field.name, getattr(a.capabilities, field.name)) for a in adapters)
        yield f"| `{field.name}` | {values} | {meaning[field.name]} |"


def settings() -> Iterator[str]:
    """Yield the table of environment variables."""
    meaning = attributes(_config.Settings)
    yield "| Variable | Default | Meaning |"
    yield "|---|---|---|"
    for field in fields(_config.Settings):
        default: Any = _config.DEFAULT_URL if field.name == "url" else field.default
        shown = "" if default in ((), "", None) else f"`{default}`"
        yield f"| `MSGBUS_{field.name.upper()}` | {shown} | {meaning[field.name]} |"


def headers() -> Iterator[str]:
    """Yield the table of wire headers."""
    rows = re.findall(r"^``([\w-]+)``\s+(.*)$", _message.__doc__ or "", re.MULTILINE)
    yield "| Header | Meaning |"
    yield "|---|---|"
    for name, text in rows:
        yield f"| `{name}` | {text.replace('``', '`')} |"


def attributes(cls: type) -> dict[str, str]:
    """Return what the class's docstring says about each attribute, on one line and in Markdown."""
    found: dict[str, str] = {}
    name = ""
    section = (cls.__doc__ or "").partition("Attributes:\n")[2]
    for line in section.splitlines():
        if begins := re.match(r"        (\w+): (.*)", line):
            name = begins[1]
            found[name] = begins[2]
        elif line.strip():
            found[name] += f" {line.strip()}"
    return {name: text.replace("``", "`").replace("|", "\\|") for name, text in found.items()}


def _adapters() -> list[Adapter]:
    """Return one adapter of each class, as its options' defaults make it."""
    made: dict[type[Adapter], Adapter] = {}
    for scheme in adapter_schemes():
        url = BusURL.parse(URLS.get(scheme, f"{scheme}://localhost"))
        cls = adapter_class(url)
        made.setdefault(cls, cls(url, AdapterConfig()))
    return list(made.values())


def _order(adapter: Adapter) -> tuple[int, str]:
    """Embedded brokers come first."""
    return (["sqlite", "memory"].index(adapter.name) if adapter.name in {"sqlite", "memory"} else 9), _broker(adapter)


def _broker(adapter: Adapter) -> str:
    return type(adapter).__module__.partition(".")[0].removeprefix("msgbus_")


def _show(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else NO
    if name == "max_body":
        return f"{value / 2**20:g} MiB" if value >= 2**20 else f"{value / 2**10:g} KiB"
    if name in {"max_delay", "dedupe_window"}:
        return NO if not value else "any" if value >= NEVER else _duration(value)
    return NO if value == "none" else f"{value:,}" if isinstance(value, int) else str(value)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


if __name__ == "__main__":
    sys.exit(main())
