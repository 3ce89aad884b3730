"""What taskiq's contenders have in common. Messages are tasks: their bodies are texts in an envelope of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from taskiq import AsyncBroker, SimpleRetryMiddleware
from taskiq.api import run_receiver_task

from tests.bench.suite.contender import Contender, Place, Publisher
from tests.bench.suite.contenders.faststream import Publishing
from tests.bench.suite.load import Handler

__all__ = ["PREFETCH", "TaskiqBase"]

PREFETCH = 250
_TASK = "handle"


class TaskiqBase(Contender):
    """A task per message, acked after it; what fails is sent again before it is acked."""

    name = "taskiq"
    full = False
    can = frozenset({"waits", "tasks", "processes", "retries"})
    distributions: ClassVar[tuple[str, ...]] = ("taskiq",)

    def _make(self, queue: str) -> AsyncBroker:
        raise NotImplementedError

    def _broker(self, queue: str) -> AsyncBroker:
        logging.getLogger("taskiq").disabled = True
        logging.disable(logging.CRITICAL)  # a peer's log is not what is measured
        retries = SimpleRetryMiddleware(default_retry_count=5, default_retry_label=True)
        return self._make(queue).with_middlewares(retries)

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        broker = self._broker(place.name)
        task: Any = broker.register_task(_nothing, task_name=_TASK)
        await broker.startup()
        try:
            yield Publishing(lambda body: task.kiq(body.decode()))
        finally:
            await broker.shutdown()

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        async def handle(body: str) -> None:
            await handler(body)

        broker = self._broker(places[0].name)
        broker.is_worker_process = True
        broker.register_task(handle, task_name=_TASK)
        await broker.startup()
        work = run_receiver_task(
            broker, validate_params=False, max_async_tasks=concurrency, max_prefetch=PREFETCH, run_startup=False
        )
        receiver = asyncio.create_task(work)
        try:
            yield
        finally:
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
            await broker.shutdown()


async def _nothing(body: str) -> None: ...
