"""SQLAlchemy 2, by an engine or a session maker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from msgbus.errors import ConfigError
from msgbus.store import Transactions

__all__ = ["SQLAlchemyTransactions"]


@cache
def _compiled(sql: str) -> tuple[Any, tuple[str, ...]]:
    from sqlalchemy import text  # noqa: PLC0415 - it is there: the application gave us its objects

    statement = text(sql)
    return statement, tuple(statement.compile().params)


class SQLAlchemyTransactions(Transactions):
    """Transactions of an ``AsyncEngine`` (handlers take an ``AsyncConnection``) or ``async_sessionmaker``."""

    def __init__(self, maker: Any) -> None:
        self._maker = maker

    @property
    def dialect(self) -> str:
        """The engine's dialect."""
        return str(self._engine.dialect.name)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        """Begin a session, or a connection, with a transaction."""
        async with self._maker.begin() as connection:
            yield connection

    async def execute(self, connection: Any, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement."""
        statement, names = _compiled(sql)
        result = await connection.execute(statement, {name: values[name] for name in names})
        return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

    def is_lost(self, connection: Any, error: BaseException) -> bool:
        """Tell by the error, or one that it came from."""
        cause: BaseException | None = error
        while cause is not None:
            if getattr(cause, "connection_invalidated", False):
                return True
            cause = cause.__cause__ or cause.__context__
        return False

    async def aclose(self) -> None:
        """Let go of idle connections: they belong to this event loop. The engine makes new ones when it is used."""
        await self._engine.dispose()

    @property
    def _engine(self) -> Any:
        engine = self._maker if hasattr(self._maker, "dialect") else self._maker.kw.get("bind")
        if engine is None:
            raise ConfigError("Idempotency(within=) needs a session maker that is bound to an engine")
        return engine
