"""`Idempotency(within=)`: what does not fit is refused at registration or at start, and misuse is told."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from msgbus import Bus, DeadReason, Delivery, Idempotency, Queue, Retry, TestBus
from msgbus.errors import ConfigError, HandlerError, StoreUnavailable, TopologyError
from msgbus.store import Transactions
from scripts.brokers._net import free_port
from tests.core.support import run
from tests.stores.databases import EFFECTS, sqlite_rows

jobs = Queue("jobs", str)


def open_memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False)


async def opened(bus: Bus) -> None:
    async with bus:
        pass


@pytest.mark.parametrize("within", ["postgresql://localhost/shop", 7, open_memory(), sqlite3.Connection])
def test_what_is_no_database_is_refused(within: Any) -> None:
    """A URL, a number, a class are not what handlers can be given a connection from; a connection is."""
    if isinstance(within, sqlite3.Connection):
        Idempotency(within=within)
        within.close()
        return
    with pytest.raises(ValueError, match="within=\\) takes"):
        Idempotency(within=within)


def test_availability_cannot_be_chosen_inside_a_transaction() -> None:
    """There is no handling without the database that the effect goes to."""
    with pytest.raises(ValueError, match="makes no sense with within"):
        Idempotency(within=open_memory, on_store_error="handle")


def test_a_handler_that_takes_no_connection_is_refused() -> None:
    """Nothing it does could be in the transaction."""
    with pytest.raises(HandlerError, match="does not take the connection"):
        Bus("memory://").on(jobs, idempotent=Idempotency(within=open_memory))(lambda payload: None)


def test_a_delivery_has_the_connection_too() -> None:
    """Handlers (and middleware) find it in their delivery."""
    bus, seen = Bus("memory://"), []

    @bus.on(jobs, idempotent=Idempotency(within=open_memory))
    async def handle(payload: str, delivery: Delivery[str]) -> None:
        seen.append(type(delivery.transaction))

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(jobs, "x")
            await t.drain()

    run(main())

    assert seen == [sqlite3.Connection]


def test_a_connection_without_within_is_refused() -> None:
    """A handler that takes a connection must say whose."""
    with pytest.raises(HandlerError, match="takes a Connection: say whose"):

        @Bus("memory://").on(jobs)
        def handle(payload: str, db: sqlite3.Connection) -> None: ...


def test_a_plain_function_cannot_take_an_async_session() -> None:
    """It could not await anything on it."""
    with pytest.raises(HandlerError, match="AsyncSession is for 'async def'"):

        @Bus("memory://").on(jobs, idempotent=Idempotency(within=async_sessionmaker()))
        def handle(payload: str, db: AsyncSession) -> None: ...


def test_another_library_s_connection_is_refused_at_start() -> None:
    """The types of what is given and what is taken are compared when the bus is opened."""
    bus = Bus("memory://")

    @bus.on(jobs, idempotent=Idempotency(within=open_memory))
    async def handle(payload: str, db: aiosqlite.Connection) -> None: ...

    with pytest.raises(HandlerError, match="takes a Connection, but its Idempotency\\(within=\\) gives a Connection"):
        run(opened(bus))


@pytest.mark.parametrize(
    ("within", "error", "says"),
    [
        (lambda: 7, ConfigError, "must return a connection pool"),
        (lambda: sqlite3.connect(":memory:"), ConfigError, "check_same_thread=False"),
        (async_sessionmaker(), ConfigError, "bound to an engine"),
    ],
)
def test_what_cannot_work_is_told_at_start(within: Any, error: type[Exception], says: str) -> None:
    """Before a message is lost to it."""
    bus = Bus("memory://")

    @bus.on(jobs, idempotent=Idempotency(within=within))
    async def handle(payload: str, delivery: Delivery[str]) -> None: ...

    with pytest.raises(error, match=says):
        run(opened(bus))


def test_an_unreachable_database_is_told_at_start() -> None:
    """As an unreachable broker is, and without the password."""
    bus = Bus("memory://")
    url = f"postgresql://ann:correct-horse@127.0.0.1:{free_port()}/shop"

    @bus.on(jobs, idempotent=Idempotency(within=lambda: AsyncConnectionPool(url, open=False, timeout=0.5, min_size=1)))
    async def handle(payload: str, db: psycopg.AsyncConnection) -> None: ...

    with pytest.raises(StoreUnavailable, match="cannot be used") as caught:
        run(opened(bus))
    assert "correct-horse" not in str(caught.value)


def test_tables_are_not_made_where_nothing_may_be(tmp_path: Path) -> None:
    """With verify a missing table is an error at start."""
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")

    @bus.on(jobs, idempotent=Idempotency(within=lambda: sqlite3.connect(tmp_path / "a.db", check_same_thread=False)))
    async def handle(payload: str, db: sqlite3.Connection) -> None: ...

    run(opened(bus))
    sqlite_rows(tmp_path / "a.db")("DROP TABLE msgbus_claim")
    bus._overrides["topology"] = "verify"
    with pytest.raises(TopologyError, match="msgbus_claim is missing"):
        run(opened(bus))


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_handler_that_ends_the_transaction_is_told(end: str, tmp_path: Path) -> None:
    """Its message is not taken for handled: it becomes a dead letter that says what to change."""
    bus = Bus("memory://")

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(tmp_path / "a.db", check_same_thread=False)

    @bus.on(jobs, idempotent=Idempotency(within=connect), retry=Retry(attempts=1))
    def handle(payload: str, db: sqlite3.Connection) -> None:
        getattr(db, end)()

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(jobs, "x")
            await t.drain()
            (letter,) = t.dead_letters(jobs)
            assert letter.report.reason == DeadReason.FAILED
            assert "ended the transaction it was given" in letter.report.detail

    run(main())


def test_a_delivery_inside_a_transaction_cannot_be_settled_early() -> None:
    """Acknowledged before the commit, a message could be lost with its effect."""
    bus = Bus("memory://")

    @bus.on(jobs, idempotent=Idempotency(within=open_memory), retry=Retry(attempts=1))
    async def handle(payload: str, delivery: Delivery[str], db: sqlite3.Connection) -> None:
        await delivery.ack()

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(jobs, "x")
            await t.drain()
            (letter,) = t.dead_letters(jobs)
            assert "is settled by the handler's end" in letter.report.detail

    run(main())


def test_plain_functions_write_with_sqlite3(tmp_path: Path) -> None:
    """A plain function runs in a thread, with the connection that the transaction was begun on."""
    bus, path = Bus("memory://"), tmp_path / "a.db"
    sqlite_rows(path)(EFFECTS)

    @bus.on(jobs, idempotent=Idempotency(within=lambda: sqlite3.connect(path, check_same_thread=False)))
    def handle(payload: str, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO effects VALUES (?)", (payload,))

    async def main() -> None:
        async with TestBus(bus) as t:
            for number in range(50):
                await bus.send(jobs, f"job {number % 10}", id=str(number % 10))
            await t.drain()

    run(main())

    assert len(sqlite_rows(path)("SELECT * FROM effects")) == 10


class Own(Transactions):
    """Another library's transactions: here `sqlite3`'s again, by hand."""

    dialect = "sqlite"

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[sqlite3.Connection]:
        self.db.execute("BEGIN")
        try:
            yield self.db
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    async def execute(self, connection: Any, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return list(connection.execute(sql, values).fetchall())

    def is_lost(self, connection: Any, error: BaseException) -> bool:
        return False


def test_other_libraries_join_by_a_class_of_their_own() -> None:
    """`msgbus.store.Transactions` is all that is needed."""
    own, bus, seen = Own(), Bus("memory://"), []

    @bus.on(jobs, idempotent=Idempotency(within=own), concurrency=1)
    async def handle(payload: str, db: sqlite3.Connection) -> None:
        seen.append(payload)

    async def main() -> None:
        async with TestBus(bus) as t:
            for _ in range(3):
                await bus.send(jobs, "x", id="same")
            await t.drain()

    run(main())
    own.db.close()

    assert seen == ["x"]
