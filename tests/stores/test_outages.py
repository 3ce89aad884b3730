"""The store's server goes away under load, in three ways, and comes back: nothing is lost, burned or done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from msgbus import Bus, Delivery, Idempotency, Queue, Retry
from scripts.brokers import Broker
from tests.core.support import eventually, run
from tests.stores.databases import EFFECTS, with_psycopg, with_session_on_postgres

work = Queue("work", str)
MESSAGES = 400
LEAVE = ["stop", "kill", "stall"]


class Server:
    """A server behind a proxy.

    Attributes:
        url: Through the proxy.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._proxy = broker.proxy()

    def through(self, url: str) -> str:
        """Return a URL of the server with the proxy in it."""
        return url.replace(f":{self._broker.port}", f":{self._proxy.port}")

    @property
    def url(self) -> str:
        return self.through(self._broker.url)

    async def leave(self, how: str) -> None:
        """Stop in an orderly way, die, or say nothing any more while connections stay open."""
        leave = {"stop": self._broker.stop, "kill": self._broker.kill, "stall": self._proxy.stall}[how]
        await asyncio.to_thread(leave)

    async def come_back(self) -> None:
        await asyncio.to_thread(self._broker.start)
        await asyncio.to_thread(self._proxy.heal)

    def close(self) -> None:
        self._proxy.close()
        self._broker.start()


@pytest.fixture
def server(request: Any, brokers: Callable[[str], Broker]) -> Any:
    """Return the server; it runs again when the next test comes."""
    found = Server(brokers(request.param))
    yield found
    found.close()


class Load:
    """A bus that handles messages, each known by its text, while the test does something to the store."""

    def __init__(self, idempotent: Any, store: str | None = None) -> None:
        self.bus = Bus("memory://", idempotency_url=store)
        self.handled: Counter[str] = Counter()
        self.attempts: set[int] = set()
        self.bus.on(work, idempotent=idempotent, concurrency=8, retry=Retry(attempts=1), timeout=2)(self._handle)

    async def _handle(self, payload: str, delivery: Delivery[str]) -> None:
        await asyncio.sleep(0.002)
        self.handled[payload] += 1
        self.attempts.add(delivery.attempt)

    async def send(self, first: int = 0) -> None:
        await self.bus.send_many(work, [f"job {number}" for number in range(first, first + MESSAGES)])

    async def all_handled(self, count: int) -> None:
        await eventually(lambda: len(self.handled) == count, within=60, why=f"{count} messages are handled")
        await eventually(self._idle, within=60)

    async def dead(self) -> int | None:
        return (await self.bus.stats(work)).dead

    async def _idle(self) -> bool:
        stats = await self.bus.stats(work)
        return (stats.ready, stats.in_flight, stats.delayed) == (0, 0, 0)


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("server", ["redis", "postgres"], indirect=True)
def test_messages_wait_for_the_store(server: Server, how: str) -> None:
    """While it is away nothing is handled and health says so; afterwards each message is handled, at its first attempt.

    The handlers' timeout is shorter than the outage: waiting for the store is no part of a handler's time.
    """

    async def main() -> None:
        load = Load(True, f"{server.url}?timeout=3")
        async with load.bus as bus:
            await bus.start()
            await load.send()
            await eventually(lambda: len(load.handled) > 40, within=30)
            await server.leave(how)
            await eventually(lambda: not bus.health().ok, within=30)
            store = bus.health().store
            assert store is not None
            assert "unavailable" in store.reason
            before = len(load.handled)
            await asyncio.sleep(3)  # longer than the handlers' timeout
            assert len(load.handled) <= before + 8  # those that had their claims
            await server.come_back()
            await load.all_handled(MESSAGES)
            await eventually(lambda: bus.health().ok, within=30)
            assert await load.dead() == 0

        assert set(load.handled.values()) == {1}
        assert load.attempts == {1}

    run(main(), within=120)


@pytest.mark.parametrize("server", ["redis", "postgres"], indirect=True)
def test_availability_can_be_chosen(server: Server) -> None:
    """With on_store_error="handle" messages are handled while the store is away, and remembered again afterwards."""

    async def main() -> None:
        load = Load(Idempotency(on_store_error="handle"), f"{server.url}?timeout=3")
        async with load.bus as bus:
            await bus.start()
            await server.leave("stop")
            await load.send()
            await load.all_handled(MESSAGES)
            assert not bus.health().ok
            await server.come_back()
            for number in range(100):  # the connections of before are found broken one by one
                await bus.send(work, f"ping {number}")
                if bus.health().ok:
                    break
                await asyncio.sleep(0.1)
            await load.all_handled(len({*load.handled, *(f"ping {n}" for n in range(number + 1))}))
            for _ in range(3):
                await bus.send(work, "once", id="again")
            await load.all_handled(len({*load.handled, "once"}))
            assert load.handled["once"] == 1
            assert await load.dead() == 0

    run(main(), within=120)


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("make", [with_psycopg, with_session_on_postgres])
@pytest.mark.parametrize("server", ["postgres"], indirect=True)
def test_transactions_survive_their_database(server: Server, how: str, make: Any, postgres: str) -> None:
    """The database of within= goes away between effects and commits: each effect happens once, no attempt is burned."""
    database = make(server.through(postgres))
    database.rows(EFFECTS)
    attempts: set[int] = set()

    async def main() -> None:
        bus = Bus("memory://")

        async def handle(payload: str, delivery: Delivery[str], db: Any) -> None:
            attempts.add(delivery.attempt)
            await database.write(db, payload)
            await asyncio.sleep(0.002)

        handle.__annotations__ |= {"db": database.connection, "delivery": Delivery[str], "payload": str}
        bus.on(work, idempotent=Idempotency(within=database.within), concurrency=4, retry=Retry(attempts=1))(handle)

        async def idle() -> bool:
            stats = await bus.stats(work)
            return (stats.ready, stats.in_flight, stats.delayed) == (0, 0, 0)

        async with bus:
            await bus.start()
            await bus.send_many(work, [f"job {number}" for number in range(MESSAGES)])
            await eventually(lambda: len(database.effects) > 20, within=30)
            await server.leave(how)
            if how != "stall":  # a database that says nothing is waited for, like a slow one
                await eventually(lambda: not bus.health().ok, within=30)
            await asyncio.sleep(1)
            await server.come_back()
            await eventually(idle, within=90)
            await eventually(lambda: bus.health().ok, within=30)
            assert (await bus.stats(work)).dead == 0

    run(main(), within=180)

    assert sorted(database.effects) == sorted(f"job {number}" for number in range(MESSAGES))
    assert attempts == {1}


@pytest.mark.parametrize("server", ["postgres"], indirect=True)
def test_a_table_that_disappears_is_waited_for(server: Server, postgres: str) -> None:
    """An operator's mistake at the store does not cost messages either."""

    async def main() -> None:
        load = Load(True, postgres)
        async with load.bus as bus, await psycopg.AsyncConnection.connect(postgres, autocommit=True) as db:
            await bus.start()
            await db.execute("ALTER TABLE msgbus_claim RENAME TO elsewhere")
            await load.send()
            await eventually(lambda: not bus.health().ok, within=30)
            assert not load.handled
            await db.execute("ALTER TABLE elsewhere RENAME TO msgbus_claim")
            await load.all_handled(MESSAGES)
            assert await load.dead() == 0

    run(main(), within=60)
