"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AppDir", "Application", "AsJSON", "Channel", "Factory", "Group", "Limit", "Url"]

Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The broker, instead of MSGBUS_URL's.", show_default=False)
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Application = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:BUS", help="The application whose channels are meant.", show_default=False),
]
AppDir = Annotated[Path, typer.Option("--app-dir", metavar="DIR", help="Where the application's module is.")]
Factory = Annotated[bool, typer.Option("--factory", help="MODULE:BUS is a function that returns the bus.")]
Channel = Annotated[
    str, typer.Argument(metavar="CHANNEL", help="A queue, or a topic's group as TOPIC@GROUP.", show_default=False)
]
Group = Annotated[
    str | None, typer.Option("--group", metavar="GROUP", help="The consumer group, on a topic.", show_default=False)
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most so many.", show_default=False)]
