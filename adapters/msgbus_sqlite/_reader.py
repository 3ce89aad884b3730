"""The thread that only reads: snapshots on demand, and the look-out for what other processes have committed."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from msgbus_sqlite._worker import Worker, fail, succeed

__all__ = ["Reader"]

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.001, 0.02
"""Pauses between two looks for other processes' commits, in seconds: they double while nothing happens. An idle
process uses less than one per cent of a core for it."""


@dataclass(slots=True)
class _Query:
    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


class Reader(Worker[_Query]):
    """Runs queries, and between them watches for commits.

    Args:
        connect: Opens the connection.
        translate: Makes a msgbus error of what `sqlite3` raises.
        survey: Called in the thread after somebody committed; what it returns goes to *on_survey* unless empty.
        on_survey: Told, in the event loop, what *survey* found.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        translate: Callable[[Exception], Exception],
        *,
        survey: Callable[[sqlite3.Connection], dict[int, float]],
        on_survey: Callable[[dict[int, float]], None],
    ) -> None:
        super().__init__("msgbus-sqlite-reader", connect, translate)
        self._survey = survey
        self._on_survey = on_survey
        self._watching = False
        self._version = -1

    async def query(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *run* reads, all of it in one snapshot."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.put(_Query(run, future))
        return await future

    def watch(self) -> None:
        """Begin to look for commits, until closed."""
        if not self._watching:
            self._watching = True
            self.put(_Query(lambda _: None, self._loop.create_future()))  # ends its wait for queries

    def serve(self, db: sqlite3.Connection) -> None:
        """Answer queries and look for commits, until closed."""
        db.execute(
            "PRAGMA busy_timeout = 1000"
        )  # ms: readers wait only while another process mends the log of a dead one
        pause = _SHORTEST
        while True:
            try:
                query = self._items.get(timeout=pause if self._watching else None)
            except queue.Empty:
                pause = _SHORTEST if self._look(db) else min(2 * pause, _LONGEST)
                continue
            if query is None:
                return
            self._answer(db, query)

    def _look(self, db: sqlite3.Connection) -> bool:
        """Tell whether somebody has committed since the last look; if so, pass on what that means."""
        try:
            ((version,),) = db.execute("PRAGMA data_version").fetchall()
            if version == self._version:
                return False
            self._version = version
            if findings := self._survey(db):
                self.post(self._on_survey, findings)
        except sqlite3.Error:
            # Nobody can act on it here. Whoever waits asks again after its `wait`, and meets the error there.
            return False
        return True

    def _answer(self, db: sqlite3.Connection, query: _Query) -> None:
        try:
            db.execute("BEGIN")
            try:
                result = query.run(db)
            finally:
                db.execute("ROLLBACK")
        except Exception as exc:  # noqa: BLE001 - handed to whoever awaits the query
            self.post(fail, query.future, self._translate(exc))
        else:
            self.post(succeed, query.future, result)
