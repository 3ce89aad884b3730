"""What a contender is: one library on one broker, behind as few methods as the cases need."""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from tests.bench.suite.load import Handler

__all__ = ["AT_LEAST_ONCE", "AT_MOST_ONCE", "Contender", "Kind", "Place", "Publisher", "Request", "at_once"]

AT_LEAST_ONCE = "at least once"
"""Persistent, confirmed, acked after the handler."""
AT_MOST_ONCE = "at most once"
"""A message may be lost when a process or a broker dies, or when a handler fails."""

T = TypeVar("T")
Request = Callable[[bytes], Awaitable[bytes]]


class Kind(enum.StrEnum):
    """What a figure is compared as."""

    OURS = "msgbus"
    RAW = "raw client"
    PEER = "framework"


@dataclass(frozen=True)
class Place:
    """A queue.

    Attributes:
        name: Nobody else uses it.
        keys: The messages have one of so many keys, and those of a key stay in order; 0 for none.
        partitions: Of a topic, where there are any; 0 for as many as everybody's.
    """

    name: str
    keys: int = 0
    partitions: int = 0


class Publisher(ABC):
    """Publishes to one queue."""

    @abstractmethod
    async def one(self, body: bytes) -> None:
        """Publish one message and return when it is confirmed."""

    @abstractmethod
    async def many(self, bodies: Sequence[bytes]) -> None:
        """Publish messages the quickest way the library has, and return when all are confirmed."""


class Contender(ABC):
    """One library on one broker. Open it with ``async with``; a new one is made for every run.

    Attributes:
        name: What the report calls it.
        kind: What it is compared as.
        guarantee: Its class of delivery guarantee; figures of different classes are never compared.
        settings: How it is set up, in a few words.
        modules: What a program that uses it imports.
        can: What it has besides publishing and consuming: "requests", "retries", "keys", "waits" (handlers that wait
            run concurrently), "batches" (handlers take lists), "tasks" (publishes run concurrently), "processes"
            (publisher and consumer may be in different ones), "backlogs" (it publishes 100,000 in bearable time),
            "10 subscriptions" (so many at once), "partitions" (of a topic), "embedded" (no broker to reach).
        buffer: How many messages of 1 KiB it may hold when the first one is handled.
        full: Whether it takes part in all cases that it can do, not only in the headlines.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = Kind.PEER
    guarantee: ClassVar[str] = AT_LEAST_ONCE
    settings: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()
    distributions: ClassVar[tuple[str, ...]] = ()
    can: ClassVar[frozenset[str]] = frozenset({"waits", "processes"})
    buffer: ClassVar[int] = 500
    full: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> Self:
        """Connect, if that makes sense before anything is published."""
        return self

    async def __aexit__(self, *_: object) -> None:  # noqa: B027 - most have nothing to do
        """Disconnect."""

    async def create(self, *places: Place) -> None:  # noqa: B027 - the same
        """Make the queues, where publishing does not do that."""

    @abstractmethod
    def publisher(self, place: Place) -> AbstractAsyncContextManager[Publisher]:
        """Open a publisher."""

    @abstractmethod
    def consumer(
        self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1
    ) -> AbstractAsyncContextManager[Any]:
        """Consume inside the context, acking each message after its handler, *concurrency* of them at once."""

    def requester(self, name: str) -> AbstractAsyncContextManager[Request]:
        """Serve a method that answers with what it got, and return what calls it."""
        raise NotImplementedError


async def at_once(width: int, items: Iterable[T], call: Callable[[T], Awaitable[Any]]) -> None:
    """Call with each item, with *width* calls under way."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await call(item)

    await asyncio.gather(*(work() for _ in range(width)))
