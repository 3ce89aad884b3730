"""A function that makes a connection, pool or engine each time a bus is opened, to be closed with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from msgbus.errors import ConfigError
from msgbus.store import Transactions

__all__ = ["MadeTransactions"]


class MadeTransactions(Transactions):
    """Transactions of what a function returns.

    Args:
        make: The function; may be ``async``.
        choose: Returns the transactions of what it made, or None if that is unknown.
    """

    def __init__(self, make: Callable[[], Any], choose: Callable[[Any], Transactions | None]) -> None:
        self._make = make
        self._choose = choose
        self._made: Transactions | None = None

    @property
    def dialect(self) -> str:
        """That of what was made."""
        return self._inner.dialect

    async def open(self) -> None:
        """Call the function."""
        made = self._make()
        if inspect.isawaitable(made):
            made = await made
        self._made = self._choose(made)
        if self._made is None:
            raise ConfigError(
                "the function given as Idempotency(within=) must return a connection pool, an engine, a session maker "
                f"or a SQLite connection, got {type(made).__qualname__}"
            )
        await self._made.open()

    def begin(self) -> AbstractAsyncContextManager[Any]:
        """Begin there."""
        return self._inner.begin()

    async def execute(self, connection: Any, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement there."""
        return await self._inner.execute(connection, sql, values)

    def is_lost(self, connection: Any, error: BaseException) -> bool:
        """Ask there."""
        return self._inner.is_lost(connection, error)

    async def aclose(self) -> None:
        """Close what was made."""
        if self._made is not None:
            await self._made.aclose()

    @property
    def _inner(self) -> Transactions:
        assert self._made is not None, "opened before anything else"
        return self._made
