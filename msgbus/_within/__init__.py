"""Transactions of the application's own database, whichever library it uses.

One file per library, imported when somebody gives `Idempotency(within=)` an object of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from msgbus._within.made import MadeTransactions
from msgbus.store import Transactions

__all__ = ["transactions_for"]

_MODULES = {
    "psycopg_pool.AsyncConnectionPool": "psycopg:PsycopgTransactions",
    "psycopg_pool.AsyncNullConnectionPool": "psycopg:PsycopgTransactions",
    "sqlalchemy.AsyncEngine": "sqlalchemy:SQLAlchemyTransactions",
    "sqlalchemy.async_sessionmaker": "sqlalchemy:SQLAlchemyTransactions",
    "sqlite3.Connection": "sqlite:SQLiteTransactions",
    "aiosqlite.Connection": "sqlite:SQLiteTransactions",
}
"""By an object's type (its package and its name): the module here, and its class."""


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
    for cls in type(within).__mro__:
        if place := _MODULES.get(f"{cls.__module__.partition('.')[0]}.{cls.__name__}"):
            module, _, name = place.partition(":")
            made: Transactions = getattr(import_module(f"{__name__}.{module}"), name)(within)
            return made
    return None
