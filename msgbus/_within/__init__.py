"""Transactions of the application's own database, whichever library it uses.

Nothing is imported here: who gives `Idempotency(within=)` an object has imported its library. One file per library.
"""

from __future__ import annotations

from typing import Any

from msgbus._within.psycopg import PsycopgTransactions
from msgbus._within.sqlalchemy import SQLAlchemyTransactions
from msgbus._within.sqlite import SQLiteTransactions
from msgbus.store import Transactions

__all__ = ["transactions_for"]


def transactions_for(within: Any) -> Transactions:
    """Return the transactions of what ``Idempotency(within=)`` was given.

    Raises:
        ValueError: It is none of the things that are known.
    """
    if isinstance(within, Transactions):
        return within
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(within).__mro__}
    if "psycopg_pool.AsyncConnectionPool" in names or "psycopg_pool.AsyncNullConnectionPool" in names:
        return PsycopgTransactions(within)
    if "sqlalchemy.AsyncEngine" in names or "sqlalchemy.async_sessionmaker" in names:
        return SQLAlchemyTransactions(within)
    if callable(within) and not isinstance(within, type):
        return SQLiteTransactions(within)
    raise ValueError(
        "Idempotency(within=) takes a psycopg_pool.AsyncConnectionPool, a SQLAlchemy AsyncEngine or "
        "async_sessionmaker, a function that opens a sqlite3 or aiosqlite connection, or a Transactions; "
        f"got {type(within).__qualname__}"
    )
