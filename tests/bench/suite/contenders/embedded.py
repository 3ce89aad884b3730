"""What the standard library does without any guarantee but its own: the ceilings of the embedded brokers."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import ClassVar

from tests.bench.suite.contender import AT_MOST_ONCE, Contender, Kind, Place, Publisher
from tests.bench.suite.load import Handler

__all__ = ["AsyncioQueue", "SQLite3"]


class _QueuePublisher(Publisher):
    def __init__(self, queue: asyncio.Queue[bytes]) -> None:
        self._queue = queue

    async def one(self, body: bytes) -> None:
        await self._queue.put(body)

    async def many(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            await self._queue.put(body)


class AsyncioQueue(Contender):
    """A plain `asyncio.Queue` and a task per worker: nothing is acked, nothing comes again."""

    name = "asyncio.Queue"
    kind = Kind.RAW
    guarantee = AT_MOST_ONCE
    settings = "as many tasks as handlers"
    modules: ClassVar[tuple[str, ...]] = ("asyncio",)
    can: ClassVar[frozenset[str]] = frozenset({"waits", "tasks"})

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._queues: defaultdict[str, asyncio.Queue[bytes]] = defaultdict(asyncio.Queue)

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        yield _QueuePublisher(self._queues[place.name])

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        async def work(queue: asyncio.Queue[bytes]) -> None:
            while True:
                await handler(await queue.get())

        tasks = [asyncio.create_task(work(self._queues[place.name])) for place in places for _ in range(concurrency)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _TablePublisher(Publisher):
    def __init__(self, db: sqlite3.Connection, size: int) -> None:
        self._db = db
        self._size = size

    async def one(self, body: bytes) -> None:
        self._db.execute("INSERT INTO message (body) VALUES (?)", (body,))

    async def many(self, bodies: Sequence[bytes]) -> None:
        for first in range(0, len(bodies), self._size):
            self._db.execute("BEGIN IMMEDIATE")
            part = bodies[first : first + self._size]
            self._db.executemany("INSERT INTO message (body) VALUES (?)", ((body,) for body in part))
            self._db.execute("COMMIT")
            await asyncio.sleep(0)


class SQLite3(Contender):
    """`sqlite3` on the event loop: one table, rows read and deleted 200 at a time, by a single consumer."""

    name = "sqlite3"
    kind = Kind.RAW
    settings = "one table, transactions of 200, one consumer, no leases and no retries; synchronous=NORMAL"
    modules: ClassVar[tuple[str, ...]] = ("sqlite3",)
    can: ClassVar[frozenset[str]] = frozenset({"processes", "backlogs"})
    size = 200

    @contextlib.contextmanager
    def _open(self, queue: str) -> Iterator[sqlite3.Connection]:
        path = self.url.removeprefix("sqlite:///").partition("?")[0] + f"-{queue}"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY, body BLOB)")
            yield db

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        with self._open(place.name) as db:
            yield _TablePublisher(db, self.size)

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._work(place.name, handler)) for place in places]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, queue: str, handler: Handler) -> None:
        with self._open(queue) as db:
            while True:
                rows = db.execute("SELECT id, body FROM message ORDER BY id LIMIT ?", (self.size,)).fetchall()
                for _, body in rows:
                    await handler(body)
                if rows:
                    db.execute("DELETE FROM message WHERE id <= ?", (rows[-1][0],))
                await asyncio.sleep(0 if rows else 0.001)
