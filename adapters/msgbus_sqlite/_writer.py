"""The one thread that writes: concurrent calls share its transactions, and none of them blocks the event loop."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgbus.adapter import Clock
from msgbus.errors import BrokerError
from msgbus_sqlite._connection import patiently
from msgbus_sqlite._worker import Worker, fail, succeed

__all__ = ["Transaction", "Writer"]

T = TypeVar("T")

_SHARE = 0.01
"""Seconds for which a transaction takes in further calls. Longer keeps other processes waiting for the lock; shorter
pays for more commits."""


@dataclass(slots=True)
class Transaction:
    """What a call may use while it runs.

    Attributes:
        db: The connection, inside a transaction. A call that raises undoes it, its own part and no other's.
        now: The time, taken after the lock was had.
        woken: The places where something has, or will, become available.
        undo: What to call, last first, if the transaction fails (in this thread; must not raise).
    """

    db: sqlite3.Connection
    now: float
    woken: set[int] = field(default_factory=set)
    undo: list[Callable[[], None]] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    work: Callable[[Transaction], Any]
    peek: Callable[[sqlite3.Connection, float], Any] | None
    future: asyncio.Future[Any]
    result: Any = None


class Writer(Worker[_Call]):
    """Runs calls in order, several per transaction.

    A call may run twice (alone, when another one of its transaction failed), so what it changes outside the database
    needs an entry in `Transaction.undo`.

    Args:
        connect: Opens the connection.
        translate: Makes a msgbus error of what `sqlite3` raises.
        clock: Says what time it is.
        busy_timeout: Seconds to wait for other processes' transactions.
        on_wake: Told the places woken by a transaction, in the event loop.
        on_health: Told, in the event loop, why the database cannot be used; None as soon as it can.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        translate: Callable[[Exception], Exception],
        *,
        clock: Clock,
        busy_timeout: float,
        on_wake: Callable[[set[int]], None],
        on_health: Callable[[Exception | None], None],
    ) -> None:
        super().__init__("msgbus-sqlite-writer", connect, translate)
        self._clock = clock
        self._busy_timeout = busy_timeout
        self._on_wake = on_wake
        self._on_health = on_health
        self._ended = False

    def submit(
        self, work: Callable[[Transaction], T], peek: Callable[[sqlite3.Connection, float], T | None] | None = None
    ) -> asyncio.Future[T]:
        """Run *work* in a transaction soon.

        Args:
            work: The call.
            peek: Looks, without a transaction, whether one is needed: what it returns other than None is the result.

        Returns:
            The call's result, once it is committed.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self.put(_Call(work, peek, future))
        return future

    def serve(self, db: sqlite3.Connection) -> None:
        """Run calls until closed."""
        while not self._ended and (call := self._items.get()) is not None:
            if not self._answered_by_peek(db, call):
                self._transact(db, call)

    def _answered_by_peek(self, db: sqlite3.Connection, call: _Call) -> bool:
        if call.peek is None:
            return False
        try:
            call.result = call.peek(db, self._clock.now())
        except sqlite3.Error:
            return False  # the transaction will meet the same error, or wait for the lock
        if call.result is None:
            return False
        self.post(_settle, [call])
        return True

    def _transact(self, db: sqlite3.Connection, first: _Call) -> None:
        batch: list[_Call] = []
        try:
            tx = self._begin(db)
        except Exception as exc:  # noqa: BLE001 - handed to whoever awaits the calls
            # All that wait have waited for the same lock; they need not wait for it one after the other.
            self._fail_all([first, *self._waiting()], exc)
            return
        try:
            for call in self._joining(first):
                batch.append(call)
                call.result = call.work(tx)
            db.execute("COMMIT")
        except Exception as exc:  # noqa: BLE001 - as above
            self._recover(tx, batch, exc)
        else:
            self._deliver(tx, batch)

    def _begin(self, db: sqlite3.Connection) -> Transaction:
        patiently(lambda: db.execute("BEGIN IMMEDIATE"), self._busy_timeout)
        return Transaction(db, self._clock.now())

    def _joining(self, first: _Call) -> Iterator[_Call]:
        """Yield *first* and what is waiting, until the transaction has had its share of the time."""
        until = time.monotonic() + _SHARE
        yield first
        while time.monotonic() < until:
            call = self._next()
            if call is None:
                return
            yield call

    def _waiting(self) -> Iterator[_Call]:
        return iter(self._next, None)

    def _next(self) -> _Call | None:
        """Return the next waiting call, or None."""
        try:
            call = self._items.get_nowait()
        except queue.Empty:
            return None
        if call is None:
            self._ended = True
        return call

    def _recover(self, tx: Transaction, batch: list[_Call], exc: Exception) -> None:
        """Undo a failed transaction, and run its calls again one by one so that only the guilty ones fail."""
        try:
            for undo in reversed(tx.undo):
                undo()
            if tx.db.in_transaction:
                tx.db.execute("ROLLBACK")
            if len(batch) == 1:
                self._fail_all(batch, exc)
                return
            for call in batch:
                self._transact_alone(tx.db, call)
        except sqlite3.Error as again:
            self._fail_all(batch, again)

    def _transact_alone(self, db: sqlite3.Connection, call: _Call) -> None:
        tx = self._begin(db)
        try:
            call.result = call.work(tx)
            db.execute("COMMIT")
        except Exception as own:  # noqa: BLE001 - handed to whoever awaits the call
            self._recover(tx, [call], own)
        else:
            self._deliver(tx, [call])

    def _fail_all(self, batch: list[_Call], exc: Exception) -> None:
        for call in batch:
            # One error each: an exception that is raised in several tasks mixes up their tracebacks.
            self.post(self._fail_in_loop, call, self._translate(exc))

    def _fail_in_loop(self, call: _Call, error: Exception) -> None:
        if isinstance(error, BrokerError):
            self._on_health(error)
        fail(call.future, error)

    def _deliver(self, tx: Transaction, batch: list[_Call]) -> None:
        self.post(self._deliver_in_loop, batch, tx.woken)

    def _deliver_in_loop(self, batch: list[_Call], woken: set[int]) -> None:
        self._on_health(None)
        _settle(batch)
        if woken:
            self._on_wake(woken)


def _settle(batch: list[_Call]) -> None:
    for call in batch:
        succeed(call.future, call.result)
