"""Gather single items into batches: what every broker and store is fast in.

One piece serves publishing, settling and the idempotency store. Items added while the loop does something else go
together into the next batch; nothing waits for a batch to fill up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

__all__ = ["Batcher", "Calls"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item]):
    """Hands added items, in order, to *flush* in batches.

    Args:
        flush: Takes a batch; must deal with its errors itself.
        max_batch: The most items per batch.
        in_flight: How many batches may be flushed at once.
    """

    def __init__(self, flush: Callable[[list[Item]], Awaitable[None]], *, max_batch: int, in_flight: int = 1) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._in_flight = in_flight
        self._pending: deque[Item] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = False
        self.crash: BaseException | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, item: Item) -> None:
        """Add an item; it is flushed with what else comes in this turn of the event loop."""
        self._pending.append(item)
        if not self._starting and len(self._tasks) < self._in_flight:
            self._start()

    def extend(self, items: Iterable[Item]) -> None:
        """Add several items that stay together as far as *max_batch* allows."""
        self._pending.extend(items)
        if self._pending and not self._starting and len(self._tasks) < self._in_flight:
            self._start()

    async def drain(self) -> None:
        """Return when all that was added has been flushed."""
        while self._pending or self._tasks:
            if self._tasks:
                await asyncio.wait(self._tasks)
            else:
                await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Cancel what is being flushed and forget the rest."""
        self._pending.clear()
        self._starting = False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self) -> None:
        self._starting = True  # until the task runs, in the next turn
        task = asyncio.get_running_loop().create_task(self._run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _take(self) -> list[Item]:
        pending = self._pending
        if len(pending) <= self._max_batch:
            batch = list(pending)
            pending.clear()
            return batch
        return [pending.popleft() for _ in range(self._max_batch)]

    async def _run(self) -> None:
        self._starting = False
        while batch := self._take():
            if self._pending and len(self._tasks) < self._in_flight:
                self._start()
            await self._flush(batch)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.crash = error
            asyncio.get_running_loop().call_exception_handler(
                {"message": "msgbus: a batch could not be flushed", "exception": error, "task": task}
            )
        if self._pending and not self._starting:
            self._start()


class Calls(Generic[Item, Result]):
    """Turns concurrent single calls into calls of a function that takes a batch.

    Args:
        function: Takes items and returns as many results; an exception is every caller's.
        max_batch: The most items per call.
        in_flight: How many calls may run at once.
    """

    def __init__(
        self, function: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, max_batch: int, in_flight: int = 1
    ) -> None:
        self._function = function
        self._batcher: Batcher[tuple[Item, asyncio.Future[Result]]] = Batcher(
            self._flush, max_batch=max_batch, in_flight=in_flight
        )

    async def __call__(self, item: Item) -> Result:
        """Call the function for *item*, together with whoever else calls now."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._batcher.add((item, future))
        return await future

    async def aclose(self) -> None:
        """Cancel the calls that run."""
        await self._batcher.aclose()

    async def _flush(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._function([item for item, _ in batch])
        except BaseException as exc:
            for _, future in batch:
                if not future.done():
                    if isinstance(exc, asyncio.CancelledError):
                        future.cancel()
                    else:
                        future.set_exception(exc)
            if not isinstance(exc, Exception):
                raise
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
