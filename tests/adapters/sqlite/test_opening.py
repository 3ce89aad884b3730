"""URLs, files that cannot be used, verify and skip, opening and closing."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from msgbus.adapter import AdapterConfig, BusURL, Provision, Source, Topology
from msgbus.errors import BrokerError, ClosedError, ConfigError, TopologyError
from msgbus_sqlite import SQLiteAdapter, SQLiteStore
from msgbus_sqlite._connection import open_database
from msgbus_sqlite._options import Options
from msgbus_sqlite._schema import BUS


def make(url: str, **config) -> SQLiteAdapter:
    return SQLiteAdapter(BusURL.parse(url), AdapterConfig(**config))


def open_and_close(adapter) -> None:
    async def body():
        try:
            await adapter.open()
        finally:
            await adapter.aclose()

    asyncio.run(body())


def test_three_slashes_are_relative_and_four_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert tmp_path / "a b.db" == make("sqlite:///a%20b.db").raw
    assert Path("/var/x.db") == make("sqlite:////var/x.db").raw


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://host/x.db", "names a host"),
        ("sqlite://x.db", "names a host"),
        ("sqlite:///", "names no file"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///x.db?synchronous=OFF", "NORMAL, FULL"),
        ("sqlite:///x.db?busy_timeout=-1", "busy_timeout"),
        ("sqlite:///x.db?journal=wal", "journal"),
    ],
)
def test_wrong_urls_say_what_is_right(url, says):
    with pytest.raises(ConfigError, match=says):
        make(url)
    with pytest.raises(ConfigError, match=says):
        SQLiteStore(BusURL.parse(url), AdapterConfig())


def test_many_can_create_one_file_at_once(tmp_path):
    """SQLite itself fails at once when two switch a new file to a write-ahead log; we try again."""
    barrier = threading.Barrier(6)

    def create(_):
        for number in range(20):
            barrier.wait(10)
            open_database(tmp_path / f"{number}.db", Options(), BUS, create=True).close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(create, range(6)))


def test_synchronous_is_what_the_url_says(kit):
    async def body(query, level):
        async with kit.adapter(query=query) as adapter:
            found = await adapter._writer.submit(lambda tx: tx.db.execute("PRAGMA synchronous").fetchall())
            assert [(level,)] == found

    kit.run(body("", 1))
    kit.run(body("?synchronous=full", 2))


def test_a_file_that_is_no_database_is_named(kit):
    kit.path.write_bytes(b"this is not a database, it is a text of more than a hundred bytes" * 4)

    with pytest.raises(ConfigError, match=r"bus\.db.*not a SQLite database"):
        open_and_close(make(str(kit.url)))


def test_a_truncated_database_is_refused(kit):
    open_and_close(make(str(kit.url)))
    kit.path.write_bytes(kit.path.read_bytes()[:5000])

    with pytest.raises((ConfigError, BrokerError), match=r"bus\.db"):
        open_and_close(make(str(kit.url)))


@pytest.mark.parametrize("path", ["missing/bus.db", "."])
def test_a_path_that_cannot_be_a_file_is_named(tmp_path, path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        open_and_close(make(f"sqlite:///{tmp_path}/{path}"))


def test_a_newer_schema_is_refused_and_says_upgrade(kit):
    open_and_close(make(str(kit.url)))
    with sqlite3.connect(kit.path) as db:
        db.execute("UPDATE msgbus_schema SET version = 99")
    db.close()

    with pytest.raises(ConfigError, match=r"newer msgbus.*version 99.*upgrade"):
        open_and_close(make(str(kit.url)))


def test_bus_and_store_share_a_file_with_the_tables_of_an_application(kit):
    db = sqlite3.connect(kit.path)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()

    open_and_close(make(str(kit.url)))
    open_and_close(SQLiteStore(kit.url, AdapterConfig()))

    db = sqlite3.connect(kit.path)
    assert db.execute("SELECT * FROM msgbus_schema ORDER BY part").fetchall() == [("bus", 1), ("store", 1)]
    db.close()


def test_verify_creates_no_file(kit):
    with pytest.raises(TopologyError, match=r"bus\.db does not exist"):
        open_and_close(make(str(kit.url), provision=Provision.VERIFY))

    assert not kit.path.exists()


def test_verify_creates_no_tables(kit):
    sqlite3.connect(kit.path).close()
    kit.path.touch()

    with pytest.raises(TopologyError, match="no msgbus tables"):
        open_and_close(make(str(kit.url), provision=Provision.VERIFY))


def test_verify_names_all_that_is_missing_and_creates_none_of_it(kit):
    async def body():
        async with kit.adapter(kit.queue("there")):
            pass
        async with kit.adapter(provision=Provision.VERIFY) as adapter:
            topology = Topology((kit.queue("there"), kit.queue("gone")), (Source(kit.topic("t"), "g"),))
            for _ in range(2):
                with pytest.raises(TopologyError, match=r"queue 'gone', topic 't', group 'g' of topic 't'"):
                    await adapter.declare(topology)
            await adapter.declare(Topology((kit.queue("there"),)))

    kit.run(body())


def test_skip_neither_creates_nor_looks(kit):
    async def body():
        async with kit.adapter(kit.queue("q", keyed=True), provision=Provision.SKIP) as adapter:
            (error,) = await adapter.publish([kit.message(kit.queue("q"), "x")])
            assert "queue 'q' does not exist" in str(error)

    kit.run(body())


@pytest.mark.parametrize("provision", [Provision.CREATE, Provision.VERIFY])
def test_keyed_and_unkeyed_declarations_do_not_mix(kit, provision):
    async def body():
        async with kit.adapter(kit.queue(keyed=True)):
            pass
        with pytest.raises(TopologyError, match=r"queue 'orders' exists in .*bus\.db with a key.*without"):
            async with kit.adapter(kit.queue(), provision=provision):
                pass

    kit.run(body())


def test_a_locked_file_is_unavailable_and_health_tells(kit):
    async def body():
        async with kit.adapter(kit.queue(), query="?busy_timeout=0.2") as adapter:
            assert adapter.health.ok
            holder = sqlite3.connect(kit.path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(BrokerError, match=r"bus\.db is unavailable: another process kept it locked") as caught:
                await adapter.publish([kit.message(kit.queue(), "x")])
            assert caught.value.retryable
            assert not adapter.health.ok
            assert "locked" in adapter.health.reason
            holder.close()
            await kit.publish(adapter, kit.message(kit.queue(), "x"))
            assert adapter.health.ok

    kit.run(body())


def test_after_close_every_call_says_so_and_no_thread_is_left(kit):
    async def body():
        before = threading.active_count()
        async with kit.adapter(kit.queue()) as adapter:
            consumer = await kit.consumer(adapter, Source(kit.queue()))
            assert threading.active_count() == before + 2
        await asyncio.gather(*(adapter.aclose() for _ in range(10)))
        await consumer.aclose()
        assert threading.active_count() == before
        assert not adapter.health.ok
        for call in (
            lambda: adapter.publish([kit.message(kit.queue(), "x")]),
            lambda: adapter.declare(Topology()),
            lambda: kit.consumer(adapter, Source(kit.queue())),
            lambda: adapter.stats(Source(kit.queue())),
            lambda: adapter.browse(Source(kit.queue()), limit=1),
            lambda: consumer.receive(1, 0),
            lambda: consumer.settle([]),
            adapter.open,
        ):
            with pytest.raises(ClosedError):
                await call()

    kit.run(body())


def test_what_was_not_declared_cannot_be_consumed(kit):
    async def body():
        async with kit.adapter() as adapter:
            for call in (kit.consumer(adapter, Source(kit.queue())), adapter.stats(Source(kit.topic("t"), "g"))):
                with pytest.raises(TopologyError, match="was not declared"):
                    await call

    kit.run(body())
