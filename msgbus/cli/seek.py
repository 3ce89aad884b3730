"""``msgbus seek``: let a group begin elsewhere in the broker's log."""

from __future__ import annotations

from typing import Annotated

import typer

from msgbus._bus import Bus
from msgbus.adapter import Provision, Start, SubscribeOptions
from msgbus.cli import _options as options
from msgbus.cli._broker import execute, find, like, opened, split_label
from msgbus.cli._output import print_json, say
from msgbus.cli._place import parse_start
from msgbus.errors import UnsupportedFeature

app = typer.Typer()

Place = Annotated[
    str,
    typer.Argument(metavar="PLACE", help="earliest, latest, a time (2026-11-21T06:00Z), or a position."),
]


@app.command("seek")
def seek(
    channel: options.Channel,
    place: Place,
    group: options.Group = None,
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Move a group: what it consumes next begins at PLACE. Stop its consumers before.

    Example: msgbus seek order.placed@mail 2026-11-21T06:00Z
    """
    start = parse_start(place)
    name, group = split_label(channel, group)
    execute(_seek(name, group, start, url))
    if as_json:
        print_json({"channel": name, "group": group or "", "start": place})
    else:
        say(f"{channel} goes on at {place}")


async def _seek(name: str, group: str | None, start: Start, url: str | None) -> None:
    channel = await find(url, name, group)
    async with opened(like(Bus(url), url, Provision.VERIFY)) as session:
        connection, source = await session.source(channel, group)
        if not connection.adapter.capabilities.replay:
            raise UnsupportedFeature(connection.adapter.name, "replay", f"{source} cannot be moved")
        await connection.declare(sources=[source])
        subscription = await connection.adapter.subscribe(source, SubscribeOptions(prefetch=1, start=start))
        await subscription.aclose()
