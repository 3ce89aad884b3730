"""Open a broker for one command, and find what a name stands for there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from msgbus._bus import Bus
from msgbus._channel import Channel, Queue, RequestReply, Topic
from msgbus._names import is_pattern
from msgbus._session import Session
from msgbus._url import BusURL
from msgbus.adapter import Adapter, Kind, Provision
from msgbus.cli._errors import Failed, Misuse
from msgbus.errors import TopologyError, UnsupportedFeature

__all__ = ["adapters_of", "agree", "change", "execute", "find", "like", "no_key", "opened", "split_label"]

T = TypeVar("T")


def execute(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine."""
    return asyncio.run(coroutine)


def change(bus: Bus, url: str | None) -> Bus:
    """Return *bus* with another broker, if one is given."""
    if url is not None:
        bus._overrides["url"] = BusURL.parse(url)  # noqa: SLF001 - as if the bus had been made with it
    return bus


def like(bus: Bus, url: str | None, topology: Provision) -> Bus:
    """Return a bus with the settings of *bus* and none of its handlers."""
    settings = dict(bus._overrides)  # noqa: SLF001 - they are the arguments of Bus
    settings["url"] = url or settings["url"]
    return Bus(**{**settings, "topology": topology})


@asynccontextmanager
async def opened(bus: Bus) -> AsyncIterator[Session]:
    """Open *bus* and give its session, which knows adapters and sources."""
    async with bus:
        yield bus._open  # noqa: SLF001 - the commands look at what applications have no use for


def adapters_of(session: Session) -> list[Adapter]:
    """Return the adapters that are open."""
    return [connection.adapter for connection in session._connections]  # noqa: SLF001 - as above


def split_label(label: str, group: str | None) -> tuple[str, str | None]:
    """Take a subscription's label, ``channel`` or ``channel@group``, apart.

    Raises:
        Misuse: *group* says something else.
    """
    name, at, own = label.partition("@")
    if at and group is not None and group != own:
        raise Misuse(f"{label!r} names the group {own!r}, and --group the group {group!r}")
    return name, own if at else group


async def find(url: str | None, name: str, group: str | None, *, topics: bool = False) -> Channel[Any]:
    """Return the channel that exists at the broker under *name*; nothing is created.

    With a group it is a topic that has that group; without, a queue or a request channel.

    Args:
        url: The broker's URL.
        name: The channel's name.
        group: The consumer group.
        topics: Without a group, it may also be a topic.

    Raises:
        Misuse: A pattern without a group.
        Failed: There is no such thing.
    """
    if is_pattern(name) and group is None:
        if not topics:
            raise Misuse(f"{name!r} is a pattern over topics: say whose messages are meant, as {name}@GROUP")
        return Topic(name, bytes)  # there is no such topic, and need not be
    if group is not None:
        kinds = [_topics(name)]
    else:
        # Requests last: a broker that keeps none (NATS) knows no name that is wrong.
        kinds = [_queues(name), *([_topics(name)] if topics else []), [RequestReply(name, bytes, bytes)]]
    problem: Exception | None = None
    for candidates in kinds:
        # One connection for each kind: to an adapter, one name for two kinds is an error of its own (Kafka).
        async with opened(Bus(url, topology=Provision.VERIFY)) as session:
            shown = session.settings.url
            try:
                return await agree(session, candidates, group)
            except (TopologyError, UnsupportedFeature) as exc:
                problem = problem or exc
    what = f"{name}@{group}" if group else name
    raise Failed(f"{what!r} was not found at {shown}: {problem}") from problem


async def agree(session: Session, candidates: Sequence[Channel[Any]], group: str | None) -> Channel[Any]:
    """Declare the candidates one after the other; return the first that the broker agrees with.

    Whether a queue has a key, and whether a name is a queue's or a request channel's, only the broker knows.

    Raises:
        TopologyError: It agrees with none; what it said about the first.
    """
    problem: Exception | None = None
    for channel in candidates:
        connection, source = await session.source(channel, group or ("" if channel.kind is Kind.TOPIC else None))
        try:
            if source.group or channel.kind is not Kind.TOPIC:
                await connection.declare(sources=[source])
            else:
                await connection.declare(addresses=[source.address])
        except (TopologyError, UnsupportedFeature) as exc:
            problem = problem or exc
        else:
            return channel
    assert problem is not None
    raise problem


def _queues(name: str) -> list[Channel[Any]]:
    return [Queue(name, bytes), Queue(name, bytes, key=no_key)]


def _topics(name: str) -> list[Channel[Any]]:
    return [Topic(name, bytes), Topic(name, bytes, key=no_key)]


def no_key(_: bytes) -> None:
    """Make a channel a keyed one."""
