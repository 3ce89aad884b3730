"""Places in a broker's log, as the commands are told them."""

from __future__ import annotations

from datetime import UTC, datetime

import typer

from msgbus.adapter import Start

__all__ = ["parse_start"]


def parse_start(text: str) -> Start:
    """Return the place in a log that *text* names.

    Raises:
        typer.BadParameter: It names none.
    """
    if text in ("earliest", "latest"):
        return "earliest" if text == "earliest" else "latest"
    if text.isdecimal():
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no place in a log: earliest, latest, a time like 2026-11-21T06:00Z, or a position"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
