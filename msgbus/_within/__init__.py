"""Transactions of the application's own database, whichever library it uses.

Nothing is imported here: who gives `Idempotency(within=)` an object has imported its library. One file per library.
"""

from __future__ import annotations

from typing import Any

from msgbus._within.made import MadeTransactions
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
    if found := _of_object(within):
        return found
    if callable(within) and not isinstance(within, type):
        return MadeTransactions(within, _of_object)
    raise ValueError(
        "Idempotency(within=) takes a psycopg_pool.AsyncConnectionPool, a SQLAlchemy AsyncEngine or "
        "async_sessionmaker, a Transactions, or a function that returns one of these or a sqlite3 or aiosqlite "
        f"connection; got {type(within).__qualname__}"
    )


def _of_object(within: Any) -> Transactions | None:
    if isinstance(within, Transactions):
        return within
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(within).__mro__}
    if names & {"psycopg_pool.AsyncConnectionPool", "psycopg_pool.AsyncNullConnectionPool"}:
        return PsycopgTransactions(within)
    if names & {"sqlalchemy.AsyncEngine", "sqlalchemy.async_sessionmaker"}:
        return SQLAlchemyTransactions(within)
    if names & {"sqlite3.Connection", "aiosqlite.Connection"}:
        return SQLiteTransactions(within)
    return None
