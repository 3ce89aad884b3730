"""What FastStream's contenders have in common."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Self

from tests.bench.suite.contender import AT_MOST_ONCE, Contender, Place, Publisher, at_once
from tests.bench.suite.load import Handler

__all__ = ["IN_FLIGHT", "FastStreamBase", "Publishing", "batches", "quiet"]

IN_FLIGHT = 256


class Publishing(Publisher):
    """Publishes by a function that takes a body, `IN_FLIGHT` at once."""

    def __init__(self, publish: Any) -> None:
        self._publish = publish

    async def one(self, body: bytes) -> None:
        await self._publish(body)

    async def many(self, bodies: Sequence[bytes]) -> None:
        await at_once(IN_FLIGHT, bodies, self._publish)


class FastStreamBase(Contender):
    """One broker object for publishing, another per consumer."""

    name = "FastStream"
    distributions: ClassVar[tuple[str, ...]] = ("faststream",)

    async def __aenter__(self) -> Self:
        if self.guarantee == AT_MOST_ONCE:
            quiet()
        self._broker = self._make()
        await self._broker.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._broker.stop()

    def _make(self, prefetch: int = 0) -> Any:
        raise NotImplementedError

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        broker = self._make(concurrency if handler.waits else 0)
        for place in places:
            self._subscribe(broker, place.name, handler, concurrency)
        await broker.start()
        try:
            yield
        finally:
            await broker.stop()


def batches(handler: Handler) -> Any:
    """Return a function for FastStream that takes whole batches."""

    async def handle(batch: list[bytes]) -> None:
        await handler.many(batch)

    return handle


def quiet() -> None:
    """Send this process's output nowhere: FastStream's defaults write two lines per message."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
