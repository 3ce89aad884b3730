"""What is peculiar to the PostgreSQL store."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from msgbus.errors import AccessDenied, ClaimLost, ClosedError, ConfigError, StoreUnavailable, TopologyError
from msgbus.store import AdapterConfig, BusURL, Claim, Completion, Done, Granted, Provision
from msgbus_postgres import PostgresStore, _store
from msgbus_postgres._sql import STATEMENTS
from scripts.brokers import Broker
from scripts.brokers._net import free_port
from tests.core.support import run
from tests.stores.databases import postgres_rows

SECRET = "correct-horse"


def claim(key: str = "k", owner: str = "me", fingerprint: str = "f", lease: float = 10) -> Claim:
    return Claim("scope", key, owner, fingerprint, lease)


@asynccontextmanager
async def opened(url: str, **config: Any) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(BusURL.parse(url), AdapterConfig(**config))
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@pytest.mark.parametrize(
    ("query", "says"),
    [("timeout=0", "timeout takes more than 0"), ("pool_size=0", "pool_size takes 1"), ("ssl=1", "no option 'ssl'")],
)
def test_a_wrong_url_is_refused(query: str, says: str) -> None:
    """Before anything is connected, with what is wrong."""
    with pytest.raises(ConfigError, match=says):
        PostgresStore(BusURL.parse(f"postgresql://localhost/shop?{query}"), AdapterConfig())


def test_an_unreachable_server_is_told_without_the_password() -> None:
    """The URL is shown, its password is not."""

    async def main() -> None:
        with pytest.raises(StoreUnavailable, match="unavailable") as caught:
            async with opened(f"postgres://ann:{SECRET}@127.0.0.1:{free_port()}/shop"):
                pass
        assert SECRET not in f"{caught.value}{caught.value!r}{caught.value.__cause__}"

    run(main())


def test_a_silent_server_does_not_hold_up_the_start(brokers: Callable[[str], Broker]) -> None:
    """Opening gives up after the connect timeout."""
    broker = brokers("postgres")
    proxy = broker.proxy()
    proxy.stall()

    async def main() -> None:
        with pytest.raises(StoreUnavailable):
            async with opened(broker.url_through(proxy), connect_timeout=1):
                pass

    try:
        run(main())
    finally:
        proxy.close()


def test_who_may_not_is_denied(brokers: Callable[[str], Broker], postgres: str) -> None:
    """A role or a database that is not there, and a role without rights, are told apart from an outage."""
    rows = postgres_rows(postgres)
    if not rows("SELECT 1 FROM pg_roles WHERE rolname = 'guest'"):
        rows("CREATE ROLE guest LOGIN")

    async def main() -> None:
        with pytest.raises(AccessDenied, match='role "nobody" does not exist'):
            async with opened(postgres.replace("postgres@", f"nobody:{SECRET}@")):
                pass
        with pytest.raises(ConfigError, match="does not exist"):
            async with opened(postgres + "x"):
                pass
        with pytest.raises(AccessDenied, match="permission denied"):
            async with opened(postgres.replace("postgres@", "guest@")):
                pass

    run(main())


def test_the_table_is_made_by_one_of_many(postgres: str) -> None:
    """Many workers that open the store at once make one table."""

    async def main() -> None:
        stores = [PostgresStore(BusURL.parse(postgres), AdapterConfig()) for _ in range(8)]
        await asyncio.gather(*(store.open() for store in stores))
        verdicts = await asyncio.gather(*(s.claim([claim(owner=str(n))]) for n, s in enumerate(stores)))
        assert sum(isinstance(verdict, Granted) for (verdict,) in verdicts) == 1
        await asyncio.gather(*(store.aclose() for store in stores))

    run(main())


@pytest.mark.parametrize("error", ["unique_violation", "duplicate_object", "duplicate_table"])
def test_another_process_made_the_table_meanwhile(postgres: str, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    """Whatever the server raises for one statement, the others are run, since the faster process may have died."""
    raced = dataclasses.replace(STATEMENTS, create=(f"DO $$ BEGIN RAISE {error}; END $$", *STATEMENTS.create))
    monkeypatch.setattr(_store, "STATEMENTS", raced)

    async def main() -> None:
        async with opened(postgres) as store:
            (verdict,) = await store.claim([claim()])
            assert isinstance(verdict, Granted)

    run(main())


def test_nothing_is_made_when_nothing_may_be(postgres: str) -> None:
    """With verify a missing table is an error at start; with skip nobody looks; where it is, both are content."""

    async def main() -> None:
        with pytest.raises(TopologyError, match="no table msgbus_claim"):
            async with opened(postgres, provision=Provision.VERIFY):
                pass
        async with opened(postgres, provision=Provision.SKIP) as store:
            with pytest.raises(StoreUnavailable, match="msgbus_claim"):
                await store.claim([claim()])
        async with opened(postgres):
            pass
        for provision in (Provision.VERIFY, Provision.SKIP):
            async with opened(postgres, provision=provision) as store:
                await store.claim([claim()])

    run(main())


def test_libpq_s_own_options_are_passed_on(postgres: str) -> None:
    """The table can be in another schema; connections are called as the service."""
    rows = postgres_rows(postgres)
    rows("CREATE SCHEMA infra")

    async def main() -> None:
        query = "options=-csearch_path%3Dinfra&prepare=false&pool_size=1&sslmode=disable"
        async with opened(f"{postgres}?{query}", service="shop") as store:
            for number in range(10):
                await store.claim([claim(f"k{number}")])
            assert rows("SELECT count(*) FROM infra.msgbus_claim") == [(10,)]
            assert rows("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop'") == [(1,)]

    run(main())


def test_a_completion_can_be_repeated(postgres: str) -> None:
    """When the answer to a completion got lost, its owner may say it again; nobody else may, even in one batch."""

    async def main() -> None:
        async with opened(postgres) as store:
            await store.claim([claim()])
            mine, theirs = Completion(claim(), b"reply", 100), Completion(claim(owner="you"), b"other", 100)
            assert list(await store.complete([mine])) == [None]
            assert [type(e) for e in await store.complete([theirs, mine])] == [ClaimLost, type(None)]
            assert list(await store.claim([claim()])) == [Done(b"reply")]

    run(main())


def test_workers_purge_side_by_side(postgres: str) -> None:
    """Each deletes rows that the other is not at; together they delete all."""

    async def main() -> None:
        async with opened(postgres) as one, opened(postgres) as two:
            await one.claim([claim(f"k{number}", lease=0.001) for number in range(500)])
            await asyncio.sleep(0.01)
            counts = await asyncio.gather(*(store.purge(100) for store in (one, two) for _ in range(3)))
            assert max(counts) <= 100
            while await one.purge(100):
                pass

    run(main())

    assert postgres_rows(postgres)("SELECT count(*) FROM msgbus_claim") == [(0,)]


def test_a_closed_store_says_so(postgres: str) -> None:
    """Use before opening and after closing is an error; closing twice is not."""

    async def main() -> None:
        store = PostgresStore(BusURL.parse(postgres), AdapterConfig())
        with pytest.raises(ClosedError, match="not open"):
            await store.claim([claim()])
        await store.open()
        await store.open()
        assert store.raw is not None
        await store.aclose()
        await store.aclose()
        with pytest.raises(ClosedError, match="closed"):
            await store.claim([claim()])
        with pytest.raises(ClosedError):
            await store.open()

    run(main())


def test_the_exported_schema_is_the_one_that_is_made(postgres: str) -> None:
    """What a migration made is what the store would have made, and making it again changes nothing."""
    statements = PostgresStore.statements
    assert statements is not None
    with psycopg.connect(postgres, autocommit=True) as db:
        for _ in range(2):
            for statement in statements.create:
                db.execute(statement.encode())

    async def main() -> None:
        async with opened(postgres, provision=Provision.VERIFY) as store:
            assert list(await store.claim([claim()])) == [Granted()]

    run(main())
