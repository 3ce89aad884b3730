"""SQLite, by a `sqlite3` or an aiosqlite connection.

SQLite lets one connection write at a time, so the inbox has one connection, and its transactions take turns. What
blocks runs in a thread of its own (aiosqlite brings one): the event loop goes on, and nobody who waits for the lock
can take the thread that whoever has it needs to commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from msgbus.errors import ConfigError, HandlerError
from msgbus.store import Transactions

__all__ = ["SQLiteTransactions"]


class SQLiteTransactions(Transactions):
    """Transactions on one connection, one after the other.

    Args:
        connection: The connection.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()
        blocks = isinstance(connection, sqlite3.Connection)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="msgbus-inbox") if blocks else None

    @property
    def dialect(self) -> str:
        """SQLite."""
        return "sqlite"

    async def open(self) -> None:
        """Check that the connection may be used by the thread."""
        try:
            await self._call(self._connection.execute, "SELECT 1")
        except sqlite3.ProgrammingError:
            self._connection.close()
            self._connection = None
            raise ConfigError(
                "the connection of Idempotency(within=) is used by several threads, one at a time: open it with "
                "sqlite3.connect(…, check_same_thread=False)"
            ) from None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        """Wait for our turn, and for other processes' transactions; commit at the end."""
        async with self._turn:
            connection = self._connection
            try:
                await self._call(connection.execute, "BEGIN IMMEDIATE")
                yield connection
                _check_open(connection)
                await self._call(connection.commit)
            except BaseException:
                await self._call(connection.rollback)
                raise

    async def execute(self, connection: Any, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement, whatever kind of rows the application likes."""
        _check_open(connection)
        cursor = await self._call(connection.cursor)
        cursor.row_factory = None
        await self._call(cursor.execute, sql, values)
        rows = await self._call(cursor.fetchall)
        await self._call(cursor.close)
        return [tuple(row) for row in rows]

    def is_lost(self, connection: Any, error: BaseException) -> bool:
        """Tell that a file is never lost."""
        return False

    async def aclose(self) -> None:
        """Close the connection and end the thread."""
        if self._connection is not None:
            await self._call(self._connection.close)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a connection's method, `sqlite3`'s in the thread; wait for its end even when cancelled."""
        if self._thread is not None:
            task: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        else:
            task = asyncio.ensure_future(_awaited(function(*arguments)))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The connection is nobody else's before the call is through; what it took is given back by `begin`.
            await asyncio.wait([task])
            raise


def _check_open(connection: Any) -> None:
    if not connection.in_transaction:
        raise HandlerError(
            "the handler ended the transaction it was given (commit(), rollback() or 'with connection:'); it is "
            "committed when the handler returns"
        )


async def _awaited(call: Any) -> Any:
    return await call
