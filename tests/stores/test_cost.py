"""What a handled message costs at the store's server, counted there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis

from msgbus import Bus, Idempotency, Queue
from scripts.brokers import Broker
from tests.core.support import eventually, run
from tests.stores.databases import EFFECTS, with_psycopg

work = Queue("work", str)
MESSAGES = 200


async def handle_all(store: str, concurrency: int, count: Callable[[], int]) -> int:
    """Handle messages; return by how much *count* grew from the first to the last of them."""
    bus, handled = Bus("memory://", idempotency_url=store), []
    bus.on(work, idempotent=True, concurrency=concurrency)(handled.append)

    async def all_done(wanted: int) -> bool:
        stats = await bus.stats(work)
        return len(handled) == wanted and not (stats.ready or stats.in_flight)

    async with bus:
        await bus.start()
        await bus.send(work, "the first one may have scripts loaded and statements prepared")
        await eventually(lambda: all_done(1))
        before = count()
        await bus.send_many(work, [f"job {number}" for number in range(MESSAGES)])
        await eventually(lambda: all_done(1 + MESSAGES), within=30)
        return count() - before


def commands(url: str) -> Callable[[], int]:
    """Count the commands that clients have sent; those of a script are part of it."""
    client = redis.Redis.from_url(url)

    def count() -> int:
        stats: dict[str, dict[str, Any]] = client.info("commandstats")
        return sum(
            one["calls"]
            for name, one in stats.items()
            if name.removeprefix("cmdstat_") not in {"info", "get", "set", "pttl", "pexpire", "del"}
        )

    return count


@pytest.mark.parametrize(("concurrency", "most"), [(1, 2 * MESSAGES), (50, MESSAGES // 4)])
def test_redis_commands(brokers: Callable[[str], Broker], concurrency: int, most: int) -> None:
    """Two round trips for a message alone; concurrent ones share them."""
    url = brokers("redis").url
    sent = run(handle_all(url, concurrency, commands(url)))
    print(f"{sent} commands for {MESSAGES} messages, {concurrency} at once")

    assert 0 < sent <= most


class ServerLog:
    """What a PostgreSQL server was told in one database, from its log."""

    def __init__(self, broker: Broker, url: str) -> None:
        if not broker.controllable:
            pytest.skip("the server's log is not ours to read")
        self._log = broker.log
        with psycopg.connect(url, autocommit=True) as db:
            name = url.rpartition("/")[2]
            db.execute(f"ALTER DATABASE {name} SET log_statement = 'all'".encode())
        self._start = self._log.stat().st_size

    def statements(self) -> list[tuple[str, str]]:
        """Return the statements in order, each on one line, with their connection's process id."""
        with self._log.open(errors="replace") as log:
            log.seek(self._start)
            found = re.split(r"^(?=\d{4}-\d\d-\d\d )", log.read(), flags=re.MULTILINE)
        told = (re.search(r"\[(\d+)\] LOG:  (?:statement|execute [^:]*): (.*)", entry, re.DOTALL) for entry in found)
        return [(match[1], " ".join(match[2].split())) for match in told if match]


@pytest.mark.parametrize(("concurrency", "most"), [(1, 2 * MESSAGES), (50, MESSAGES // 4)])
def test_postgres_statements(brokers: Callable[[str], Broker], postgres: str, concurrency: int, most: int) -> None:
    """Two statements for a message alone, in autocommit; concurrent ones share them."""
    log = ServerLog(brokers("postgres"), postgres)
    sent = run(handle_all(postgres, concurrency, lambda: len(log.statements())))
    print(f"{sent} statements for {MESSAGES} messages, {concurrency} at once")

    assert 0 < sent <= most
    assert not {"BEGIN", "COMMIT"} & {text for _, text in log.statements()}


def test_statements_within_a_transaction(brokers: Callable[[str], Broker], postgres: str) -> None:
    """Inside the application's transaction msgbus adds two statements to the application's own."""
    database = with_psycopg(postgres)
    database.rows(EFFECTS)
    log = ServerLog(brokers("postgres"), postgres)

    async def main() -> None:
        bus = Bus("memory://")

        async def handle(payload: str, db: psycopg.AsyncConnection) -> None:
            await database.write(db, payload)

        bus.on(work, idempotent=Idempotency(within=database.within), concurrency=1)(handle)
        async with bus:
            await bus.start()
            await bus.send(work, "job")
            await eventually(lambda: database.effects)

    run(main())
    (connection,) = {pid for pid, text in log.statements() if "INTO effects" in text}
    said = [text.partition(" (")[0] for pid, text in log.statements() if pid == connection]
    place = said.index("INSERT INTO effects VALUES")

    assert said[place - 2 : place + 3] == [
        "BEGIN",
        "INSERT INTO msgbus_claim AS c",
        "INSERT INTO effects VALUES",
        "INSERT INTO msgbus_claim AS c",
        "COMMIT",
    ]
