"""What dramatiq's contenders have in common. Messages are calls of actors: bodies are texts in an envelope of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from tests.bench.suite.contender import Contender, Place, Publisher
from tests.bench.suite.load import Handler

os.environ.setdefault("dramatiq_queue_prefetch", "250")  # read when it is imported

import dramatiq
from dramatiq.middleware import Retries

__all__ = ["DramatiqBase", "retries"]

_THREADS = 16
_ACTOR = "handle"


def retries() -> list[dramatiq.Middleware]:
    """Return the only middleware that the promise needs."""
    return [Retries(max_retries=5, min_backoff=10, max_backoff=10)]


class _Publisher(Publisher):
    """Each send waits for its confirm, so threads send side by side; each has a connection of its own."""

    def __init__(self, actor: Any, pool: ThreadPoolExecutor) -> None:
        self._actor, self._pool = actor, pool

    async def one(self, body: bytes) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, self._send, [body])

    async def many(self, bodies: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        parts = [bodies[first::_THREADS] for first in range(_THREADS)]
        await asyncio.gather(*(loop.run_in_executor(self._pool, self._send, part) for part in parts))

    def _send(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            self._actor.send(body.decode())


class DramatiqBase(Contender):
    """Actors in threads, acked after them."""

    name = "dramatiq"
    full = False
    can = frozenset({"waits", "processes", "retries"})
    distributions: ClassVar[tuple[str, ...]] = ("dramatiq",)
    timeout_ms: ClassVar[int] = 100

    def _make(self) -> dramatiq.Broker:
        raise NotImplementedError

    def _actor(self, queue: str, function: Any) -> tuple[dramatiq.Broker, Any]:
        logging.disable(logging.CRITICAL)  # a peer's log is not what is measured
        broker = self._make()
        return broker, dramatiq.actor(function, actor_name=_ACTOR, queue_name=queue, broker=broker)

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        broker, actor = self._actor(place.name, _nothing)
        with ThreadPoolExecutor(_THREADS) as pool:
            yield _Publisher(actor, pool)
        broker.close()

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        lock = threading.Lock()

        def handle(body: str) -> None:
            if handler.waits:
                time.sleep(handler.waits)
            with lock:
                handler.blocking(body)

        broker, _ = self._actor(places[0].name, handle)
        threads = concurrency if handler.waits else 8
        worker = dramatiq.Worker(broker, worker_timeout=self.timeout_ms, worker_threads=threads)
        worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop)
            broker.close()


def _nothing(body: str) -> None: ...
