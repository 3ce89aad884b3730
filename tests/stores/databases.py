"""Each library's database: how an application opens it, and how its handlers write to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine

from msgbus import Bus, Delivery, Idempotency, Queue

EFFECTS = "CREATE TABLE IF NOT EXISTS effects (what text)"


@dataclass
class Database:
    """One library on one database.

    Attributes:
        within: What the application gives to `Idempotency`.
        connection: What its handlers take.
        write: Adds an effect.
        rows: Runs a query from outside.
    """

    within: Any
    connection: type[Any]
    write: Callable[[Any, str], Awaitable[None]]
    rows: Callable[[str], list[tuple[Any, ...]]]

    @property
    def effects(self) -> list[str]:
        """All that is committed."""
        return sorted(what for (what,) in self.rows("SELECT what FROM effects"))

    @property
    def records(self) -> list[tuple[Any, ...]]:
        """The keys and whether they are done."""
        return [(key, bool(done)) for key, done in self.rows("SELECT key, done FROM msgbus_claim ORDER BY key")]

    def on(
        self, bus: Bus, queue: Queue[Any], handle: Callable[[Any, str], Awaitable[None]], **options: Any
    ) -> Callable[..., Any]:
        """Register a handler that takes this library's connection."""
        own = {name: options.pop(name) for name in ("key", "ttl", "lease") if name in options}

        async def handler(payload: str, db: Any) -> None:
            await handle(db, payload)

        handler.__annotations__ = {"payload": str, "db": self.connection}
        return bus.on(queue, idempotent=Idempotency(within=self.within, **own), **options)(handler)

    def on_batch(self, bus: Bus, queue: Queue[Any], handle: Callable[..., Awaitable[None]], **options: Any) -> None:
        """Register a batch handler."""

        async def handler(batch: Any, db: Any) -> None:
            await handle(db, batch)

        handler.__annotations__ = {"batch": list[Delivery[str]], "db": self.connection}
        bus.on(queue, idempotent=Idempotency(within=self.within), **options)(handler)


def sqlite_rows(path: Path) -> Callable[[str], list[tuple[Any, ...]]]:
    def rows(sql: str) -> list[tuple[Any, ...]]:
        db = sqlite3.connect(path, timeout=20)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.commit()
            db.close()

    return rows


def postgres_rows(url: str) -> Callable[[str], list[tuple[Any, ...]]]:
    def rows(sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(url, autocommit=True) as db:
            cursor = db.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    return rows


def with_sqlite3(path: Path) -> Database:
    async def write(db: sqlite3.Connection, what: str) -> None:
        db.execute("INSERT INTO effects VALUES (?)", (what,))

    return Database(
        lambda: sqlite3.connect(path, check_same_thread=False, timeout=20),
        sqlite3.Connection,
        write,
        sqlite_rows(path),
    )


def with_aiosqlite(path: Path) -> Database:
    async def write(db: aiosqlite.Connection, what: str) -> None:
        await db.execute("INSERT INTO effects VALUES (?)", (what,))

    return Database(lambda: aiosqlite.connect(path, timeout=20), aiosqlite.Connection, write, sqlite_rows(path))


async def write_by_sqlalchemy(db: AsyncSession | AsyncConnection, what: str) -> None:
    await db.execute(text("INSERT INTO effects VALUES (:what)"), {"what": what})


def with_session_on_sqlite(path: Path) -> Database:
    maker = async_sessionmaker(create_async_engine(f"sqlite+aiosqlite:///{path}", connect_args={"timeout": 20}))
    return Database(maker, AsyncSession, write_by_sqlalchemy, sqlite_rows(path))


def with_psycopg(url: str) -> Database:
    async def write(db: psycopg.AsyncConnection, what: str) -> None:
        await db.execute("INSERT INTO effects VALUES (%s)", (what,))

    def pool() -> AsyncConnectionPool:
        return AsyncConnectionPool(url, min_size=1, max_size=8, open=False, reconnect_timeout=2, timeout=5)

    return Database(pool, psycopg.AsyncConnection, write, postgres_rows(url))


def with_session_on_postgres(url: str) -> Database:
    maker = async_sessionmaker(create_async_engine(url.replace("postgresql:", "postgresql+psycopg:")))
    return Database(maker, AsyncSession, write_by_sqlalchemy, postgres_rows(url))


def with_engine_on_postgres(url: str) -> Database:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    return Database(engine, AsyncConnection, write_by_sqlalchemy, postgres_rows(url))


ON_SQLITE = {"sqlite3": with_sqlite3, "aiosqlite": with_aiosqlite, "session-sqlite": with_session_on_sqlite}
ON_POSTGRES = {
    "psycopg": with_psycopg,
    "session-postgres": with_session_on_postgres,
    "engine-postgres": with_engine_on_postgres,
}
