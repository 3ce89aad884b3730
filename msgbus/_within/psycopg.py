"""psycopg 3, by a connection pool."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from msgbus.store import Transactions

__all__ = ["PsycopgTransactions"]


class PsycopgTransactions(Transactions):
    """Transactions on connections of a ``psycopg_pool.AsyncConnectionPool``.

    A pool that is not open is opened with the bus, and closed with it: under ``msgbus run`` nobody else could.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._opened = False

    @property
    def dialect(self) -> str:
        """PostgreSQL."""
        return "postgresql"

    async def open(self) -> None:
        """Open the pool if it is closed."""
        if self._pool.closed:
            await self._pool.open()
            self._opened = True

    async def aclose(self) -> None:
        """Close the pool if it was opened here."""
        if self._opened:
            await self._pool.close()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        """Take a connection. The block forbids commit() and rollback() inside; savepoints are transaction() again."""
        async with self._pool.connection() as connection, connection.transaction():
            yield connection

    async def execute(self, connection: Any, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement, whatever kind of rows the application likes."""
        from psycopg.rows import tuple_row  # noqa: PLC0415 - it is there: the application gave us its pool

        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_with_percents(sql), values)
            return list(await cursor.fetchall()) if cursor.description else []

    def is_lost(self, connection: Any, error: BaseException) -> bool:
        """Tell by the connection, and by an error of psycopg's among those that this one came from."""
        cause: BaseException | None = error
        while cause is not None:
            if any(c.__module__ == "psycopg" and c.__name__ == "OperationalError" for c in type(cause).__mro__):
                return bool(connection.closed)
            cause = cause.__cause__ or cause.__context__
        return False


@cache
def _with_percents(sql: str) -> bytes:
    return re.sub(r"(?<!:):(\w+)", r"%(\1)s", sql.replace("%", "%%")).encode()
