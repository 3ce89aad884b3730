"""What a contender is: one library on one broker, behind as few methods as the cases need."""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Self

from tests.bench.suite.load import Handler

__all__ = ["AT_LEAST_ONCE", "AT_MOST_ONCE", "Contender", "Kind", "Publisher", "Request", "at_once"]

AT_LEAST_ONCE = "at least once"
"""Persistent, confirmed, acked after the handler."""
AT_MOST_ONCE = "at most once"
"""A message may be lost when a process dies or a handler fails."""

Request = Callable[[bytes], Awaitable[bytes]]


class Kind(enum.StrEnum):
    """What a figure is compared as."""

    OURS = "msgbus"
    RAW = "raw client"
    PEER = "framework"


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
            run concurrently), "processes" (publisher and consumer may be in different ones), "subscriptions" (many
            on one connection).
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = Kind.PEER
    guarantee: ClassVar[str] = AT_LEAST_ONCE
    settings: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()
    distributions: ClassVar[tuple[str, ...]] = ()
    can: ClassVar[frozenset[str]] = frozenset({"waits", "processes"})

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> Self:
        """Connect, if that makes sense before anything is published."""
        return self

    async def __aexit__(self, *_: object) -> None:  # noqa: B027 - most have nothing to do
        """Disconnect."""

    async def create(self, queue: str, *, keyed: bool = False) -> None:  # noqa: B027 - the same
        """Make the queue, where publishing does not do that."""

    @abstractmethod
    def publisher(self, queue: str, *, keys: int = 0) -> AbstractAsyncContextManager[Publisher]:
        """Open a publisher; its messages have one of so many keys, if any."""

    @abstractmethod
    def consumer(
        self, queues: Sequence[str], handler: Handler, *, concurrency: int = 1, keys: int = 0
    ) -> AbstractAsyncContextManager[Any]:
        """Consume inside the context, acking each message after its handler."""

    def requester(self, name: str) -> AbstractAsyncContextManager[Request]:
        """Serve a method that answers with what it got, and return what calls it."""
        raise NotImplementedError


async def at_once(width: int, bodies: Sequence[bytes], call: Callable[[bytes], Awaitable[Any]]) -> None:
    """Call with each body, with *width* calls under way."""
    left = iter(bodies)

    async def work() -> None:
        for body in left:
            await call(body)

    await asyncio.gather(*(work() for _ in range(width)))
