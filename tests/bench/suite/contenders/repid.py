"""What repid's contenders have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from repid import Message, Repid, Router, catch_all_routing_strategy

from tests.bench.suite.contender import Contender, Place, Publisher
from tests.bench.suite.contenders.faststream import Publishing
from tests.bench.suite.load import Handler

__all__ = ["RepidBase"]

TASKS = 1000  # its own default


class RepidBase(Contender):
    """An actor per queue, acked after it; what fails comes again."""

    name = "repid"
    full = False
    can = frozenset({"waits", "tasks", "processes", "retries"})
    distributions: ClassVar[tuple[str, ...]] = ("repid",)

    def _server(self) -> Any:
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        app = Repid()
        app.servers.register_server("bench", self._server(), is_default=True)
        async with app.servers.default.connection():
            yield Publishing(lambda body: app.send_message(channel=place.name, payload=body, **self._options()))

    def _options(self) -> dict[str, Any]:
        """Return what makes a message persistent, where it takes something."""
        return {}

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        logging.disable(logging.CRITICAL)  # a peer's log is not what is measured
        router = Router()

        @router.actor(  # type: ignore[untyped-decorator]
            channel=places[0].name,
            name="handle",
            routing_strategy=catch_all_routing_strategy,
            on_error="reject",
            keep_alive=False,
        )
        async def handle(message: Message) -> None:
            await handler(message.payload)

        app = Repid()
        app.include_router(router)
        app.servers.register_server("bench", self._server(), is_default=True)
        tasks = concurrency if handler.waits else TASKS
        async with app.servers.default.connection():
            worker = asyncio.create_task(app.run_worker(tasks_limit=tasks, register_signals=()))
            try:
                yield
            finally:
                worker.cancel()
                await asyncio.gather(worker, return_exceptions=True)
