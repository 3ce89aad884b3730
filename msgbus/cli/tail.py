"""``msgbus tail``: look at messages without taking them from anybody."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Annotated, Any

import typer

from msgbus._bus import Bus
from msgbus._channel import Channel
from msgbus._connections import Connection
from msgbus._message import Message, new_id
from msgbus._session import Session
from msgbus.adapter import Ack, Kind, Received, Source, Start, SubscribeOptions
from msgbus.cli import _options as options
from msgbus.cli._broker import execute, find, opened, split_label
from msgbus.cli._errors import Misuse, warn
from msgbus.cli._output import message_data, print_json, print_message
from msgbus.cli._place import parse_start
from msgbus.errors import BrokerUnavailable, MsgbusError, UnsupportedFeature

app = typer.Typer()

_LOOK = 0.5
"""Seconds between two looks at a queue; what comes and goes in between is not seen."""
_PAGE = 100

Name = Annotated[str, typer.Argument(metavar="CHANNEL", help="A queue, topic, pattern or TOPIC@GROUP.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="PLACE",
        help="Where to begin on a topic: earliest, latest, a time (2026-11-21T06:00Z), or a position.",
        show_default=False,
    ),
]
Show = Callable[[Received], bool]
"""Prints a message; returns whether it was the last one that was asked for."""


@app.command("tail")
def tail(
    channel: Name,
    group: options.Group = None,
    place: From = None,
    limit: options.Limit = None,
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Show messages as they come, until Ctrl-C or --limit; nobody else misses any.

    A topic is read through a group of its own, made for the time being: what is published from now on, or --from
    another place in the broker's log. A queue, or a topic's group, is looked at twice a second where the broker can be
    browsed: what waits there, from the oldest on.

    Example: msgbus tail 'order.*' --json | jq .body
    """
    name, group = split_label(channel, group)
    start = None if place is None else parse_start(place)
    execute(_tail(name, group, start, _printer(limit, as_json=as_json), url))


async def _tail(name: str, group: str | None, start: Start | None, show: Show, url: str | None) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        channel = await find(url, name, group, topics=True)
        async with opened(Bus(url)) as session:
            if channel.kind is Kind.TOPIC and group is None:
                await _listen(session, channel, start, show)
            elif start is not None:
                raise Misuse("--from is for topics; queues and groups are shown from their oldest message")
            else:
                await _look(session, channel, group, show)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def _look(session: Session, channel: Channel[Any], group: str | None, show: Show) -> None:
    connection, source = await session.source(channel, group)
    adapter = connection.adapter
    if not adapter.capabilities.browse:
        raise UnsupportedFeature(adapter.name, "browse", f"{source} cannot be looked at without taking its messages")
    after: str | None = None
    while True:
        page = await adapter.browse(source, limit=_PAGE, after=after)
        for received in page:
            if show(received):
                return
        if page:
            after = str(page[-1].position)
        else:
            await asyncio.sleep(_LOOK)


async def _listen(session: Session, channel: Channel[Any], start: Start | None, show: Show) -> None:
    connection, source = await session.source(channel, f"tail-{os.getpid()}-{new_id()[:6]}")
    adapter = connection.adapter
    if adapter.capabilities.replay:
        start = "latest" if start is None else start  # a log's new group may begin at its first message
    elif start is not None:
        raise UnsupportedFeature(adapter.name, "replay", f"{channel!r} can only be read from now on")
    try:
        await connection.declare(sources=[source])
        lease = session.settings.lease
        await _receive(connection, source, SubscribeOptions(prefetch=_PAGE, lease=lease, start=start), show)
    finally:
        await _remove(connection, source)


async def _receive(connection: Connection, source: Source, how: SubscribeOptions, show: Show) -> None:
    subscription = await connection.adapter.subscribe(source, how)
    try:
        while True:
            try:
                page = await subscription.receive(_PAGE, 5.0)
            except BrokerUnavailable as exc:
                warn(f"{exc}; trying again")
                await asyncio.sleep(1.0)
                continue
            for received in page:
                if show(received):
                    return
            if page:
                await subscription.settle([Ack(received) for received in page])
    finally:
        await subscription.aclose()


async def _remove(connection: Connection, source: Source) -> None:
    adapter = connection.adapter
    if not adapter.capabilities.remove:
        warn(f"the group {source.group!r} stays at the broker: the {adapter.name} adapter cannot remove groups")
        return
    try:
        await adapter.remove(source)
    except MsgbusError as exc:
        warn(f"the group {source.group!r} could not be removed: {exc}")


def _printer(limit: int | None, *, as_json: bool) -> Show:
    shown = 0

    def show(received: Received) -> bool:
        nonlocal shown
        shown += 1
        message = Message.from_wire(received.body, received.headers, received.key)
        if as_json:
            print_json(message_data(message, received.channel) | {"position": received.position})
        else:
            print_message(message, received.channel, position=received.position)
        return shown == limit

    return show
