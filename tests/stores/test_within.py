"""`Idempotency(within=)`: effect and record are committed together or not at all, with every library."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import aiosqlite
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from msgbus import BatchFailed, Bus, DeadReason, Delivery, Idempotency, Queue, Reject, RequestReply, Retry, TestBus
from tests.core.support import eventually, run
from tests.stores.databases import Database

jobs = Queue("jobs", str)


def handled(bus: Bus, *ids: str, **options: Any) -> list[Any]:
    """Run *bus* on messages with these ids until nothing is left; return the dead letters."""

    async def main() -> list[Any]:
        async with TestBus(bus) as t:
            for number in ids:
                await bus.send(jobs, f"job {number}", id=number)
            await t.drain()
            return [(letter.message.id, letter.report) for letter in t.dead_letters(jobs)]

    return run(main(), within=60)


def test_effect_and_record_are_committed_together(database: Database) -> None:
    """A message that comes three times has one effect and one record."""
    bus = Bus("memory://")
    database.on(bus, jobs, database.write)

    assert handled(bus, "1", "2", "1", "1", "3") == []
    assert database.effects == ["job 1", "job 2", "job 3"]
    assert database.records == [("1", True), ("2", True), ("3", True)]


def test_a_failed_attempt_leaves_nothing(database: Database) -> None:
    """What a failing handler wrote is rolled back with its record, and the next attempt is handled."""
    bus, attempts = Bus("memory://"), []

    async def handle(db: Any, payload: str) -> None:
        await database.write(db, payload)
        attempts.append((payload, len(database.effects)))
        if attempts.count((payload, 0)) == 1:
            raise RuntimeError("after the effect")

    database.on(bus, jobs, handle, concurrency=1)

    assert handled(bus, "1", "1") == []
    assert attempts == [("job 1", 0)] * 2
    assert database.effects == ["job 1"]


def test_a_dead_letter_leaves_nothing(database: Database) -> None:
    """A rejected message has no effect and no record."""
    bus = Bus("memory://")

    async def handle(db: Any, payload: str) -> None:
        await database.write(db, payload)
        raise Reject("no")

    database.on(bus, jobs, handle)
    ((number, report),) = handled(bus, "1")

    assert (number, report.reason, report.detail) == ("1", DeadReason.REJECTED, "no")
    assert (database.effects, database.records) == ([], [])


def test_another_payload_is_a_mismatch(database: Database) -> None:
    """The same key with another payload is dead-lettered and has no effect."""
    bus = Bus("memory://")
    database.on(bus, jobs, database.write, key=lambda payload: "same", concurrency=1)
    ((_, report),) = handled(bus, "1", "2")

    assert report.reason == DeadReason.MISMATCH
    assert database.effects == ["job 1"]


def test_a_duplicate_waits_while_the_first_is_being_handled(database: Database, tmp_path: Any) -> None:
    """Two buses get the same message at once: one handles it, the other does not, whether the first fails or not."""
    bus, other = Bus(f"sqlite:///{tmp_path}/bus.db"), Bus(f"sqlite:///{tmp_path}/bus.db")
    running, most, calls = 0, 0, 0

    async def handle(db: Any, payload: str) -> None:
        nonlocal running, most, calls
        running += 1
        calls += 1
        most = max(most, running)
        try:
            await database.write(db, payload)
            await asyncio.sleep(0.05)
            if calls == 1:
                raise RuntimeError("the first one fails")
        finally:
            running -= 1

    for one in (bus, other):
        database.on(one, jobs, handle, retry=Retry(attempts=5, base=0.01), concurrency=2)

    async def main() -> None:
        async with bus, other:
            for _ in range(4):
                await bus.send(jobs, "job", id="same")
            await bus.start()
            await other.start()

            async def done() -> bool:
                stats = await bus.stats(jobs)
                return (stats.ready, stats.in_flight, stats.delayed) == (0, 0, 0)

            await eventually(done, within=40)

    run(main(), within=60)

    assert (most, calls) == (1, 2)
    assert database.effects == ["job"]


def test_batches_share_a_transaction(database: Database) -> None:
    """A batch is one transaction: what BatchFailed names is given up, the rest is done; an error undoes all."""
    bus, batches = Bus("memory://"), []

    async def handle(db: Any, batch: list[Delivery[str]]) -> None:
        batches.append([delivery.message.id for delivery in batch])
        assert all(delivery.transaction is db for delivery in batch)
        bad = {i: ValueError("x") for i, d in enumerate(batch) if d.message.id == "bad" and len(batches) == 2}
        for index, delivery in enumerate(batch):
            if index not in bad:
                await database.write(db, delivery.payload)
        if len(batches) == 1:
            raise RuntimeError("after all effects")
        if bad:
            raise BatchFailed(bad)

    database.on_batch(bus, jobs, handle, batch=10, retry=Retry(attempts=4, jitter=False))

    assert handled(bus, "1", "bad", "2", "1") == []
    assert database.effects == ["job 1", "job 2", "job bad"]
    assert [key for key, done in database.records if done] == ["1", "2", "bad"]


def test_the_answer_of_a_request_is_in_the_transaction(database: Database) -> None:
    """A duplicate request gets the answer that was committed with the effect."""
    bus, price = Bus("memory://"), RequestReply("price", str, str)

    async def quote(query: str, db: Any) -> str:
        await database.write(db, query)
        return f"answer {len(database.effects)}"

    quote.__annotations__ = {"query": str, "db": database.connection, "return": str}
    bus.on(price, idempotent=Idempotency(within=database.within, key=lambda query: query))(quote)

    async def main() -> None:
        async with TestBus(bus):
            assert await bus.request(price, "tea") == "answer 0"
            assert await bus.request(price, "tea") == "answer 0"

    run(main())

    assert database.effects == ["tea"]


def test_records_are_purged(database: Database) -> None:
    """What has expired is deleted when a bus is opened, and from then on every minute."""
    bus = Bus("memory://")
    database.on(bus, jobs, database.write, ttl=0.01)
    handled(bus, "1", "2")
    assert len(database.records) == 2
    again = Bus("memory://")
    database.on(again, jobs, database.write)

    async def main() -> None:
        async with again:
            await eventually(lambda: not database.records)

    run(main())


def as_dict(cursor: Any, row: Any) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


@pytest.mark.parametrize("library", ["sqlite3", "aiosqlite", "psycopg"])
def test_the_application_s_row_factory_does_not_matter(library: str, request: Any, tmp_path: Any) -> None:
    """Handlers get their rows as the application wants them; msgbus reads its own as it wants."""
    bus, seen, path = Bus("memory://"), [], tmp_path / "app.db"

    def connect_sqlite3() -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.row_factory = as_dict
        return connection

    async def connect_aiosqlite() -> aiosqlite.Connection:
        connection = await aiosqlite.connect(path)
        connection.row_factory = as_dict
        return connection

    def make_pool() -> AsyncConnectionPool:
        url = request.getfixturevalue("postgres")
        return AsyncConnectionPool(url, kwargs={"row_factory": dict_row}, min_size=1, open=False)

    within = {"sqlite3": connect_sqlite3, "aiosqlite": connect_aiosqlite, "psycopg": make_pool}[library]

    @bus.on(jobs, idempotent=Idempotency(within=within))
    async def handle(payload: str, delivery: Delivery[str]) -> None:
        cursor = delivery.transaction.execute("SELECT 1 AS one")
        cursor = await cursor if library != "sqlite3" else cursor
        row = cursor.fetchone()
        seen.append(await row if library != "sqlite3" else row)

    assert handled(bus, "1", "1", "1") == []
    assert seen == [{"one": 1}]
