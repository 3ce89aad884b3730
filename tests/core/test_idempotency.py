"""Handled once: claim, handle, complete; release on failure; what happens when the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from msgbus import BatchFailed, Bus, DeadReason, Delivery, Idempotency, Queue, RequestReply, Retry, TestBus
from msgbus.adapter import Health, Outgoing
from msgbus.errors import StoreUnavailable
from msgbus.store import Claim, Granted
from msgbus_memory import MemoryStore
from tests.core.support import Order, eventually, run

orders = Queue("orders", Order)


async def twice(bus: Bus, order: Order, **options: Any) -> None:
    await bus.send(orders, order, id="same", **options)
    await bus.send(orders, order, id="same", **options)


def test_a_duplicate_is_acked_without_running_the_handler() -> None:
    """The second delivery of an id is settled and not handled."""
    bus, seen = Bus("memory://"), []

    @bus.on(orders, idempotent=True)
    async def handle(order: Order) -> None:
        seen.append(order.id)

    async def main() -> None:
        async with TestBus(bus) as t:
            await twice(bus, Order(id="1"))
            await t.drain()
            assert (await bus.stats(orders)).ready == 0

    run(main())

    assert seen == ["1"]


def test_a_failed_handler_releases_its_key() -> None:
    """Fail once with deduplication on: the retry is handled (peers lose this message)."""
    bus, seen = Bus("memory://"), []

    @bus.on(orders, idempotent=True, retry=Retry(attempts=3))
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        seen.append(delivery.attempt)
        if delivery.attempt == 1:
            raise RuntimeError("once")

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await t.drain()
            assert t.dead_letters(orders) == []

    run(main())

    assert seen == [1, 2]


def test_a_duplicate_waits_while_the_first_is_being_handled() -> None:
    """While the first runs, the second neither runs nor is lost; when the first fails, one of them is handled."""
    bus, seen, go = Bus("memory://"), [], asyncio.Event()

    @bus.on(orders, idempotent=Idempotency(lease=60), retry=Retry(attempts=1))
    async def handle(order: Order) -> None:
        seen.append(order.id)
        if len(seen) == 1:
            await go.wait()
            raise RuntimeError("first fails")

    async def main() -> None:
        async with TestBus(bus) as t:
            await twice(bus, Order(id="1"))
            await t.advance(120)  # the claim is renewed by heartbeat
            assert seen == ["1"]
            go.set()
            await t.drain()

    run(main())

    assert seen == ["1", "1"]


def test_the_key_can_come_from_the_payload() -> None:
    """Two messages about the same thing are handled once; another payload under the key is an error."""
    bus, seen = Bus("memory://"), []

    @bus.on(orders, idempotent=Idempotency(key="id"))
    async def handle(order: Order) -> None:
        seen.append((order.id, order.total))

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await bus.send(orders, Order(id="1"))
            await bus.send(orders, Order(id="1", total=99))
            await t.drain()
            assert [d.report.reason for d in t.dead_letters(orders)] == [DeadReason.MISMATCH]

    run(main())

    assert seen == [("1", 1.0)]


@pytest.mark.parametrize("key", [None, lambda order: "", lambda order: "x" * 513])
def test_a_message_without_a_usable_key_is_dead_lettered(key: Any) -> None:
    """What cannot be told from its duplicates is not handled as if it could."""
    bus = Bus("memory://")
    bus.on(orders, idempotent=Idempotency(key=key))(lambda order: None)

    async def main() -> None:
        async with TestBus(bus) as t:
            connection, source = await bus._open.source(orders, None)
            await connection.adapter.publish([Outgoing(source.address, b'{"id": "1"}', {}, "")])
            await t.drain()
            assert [d.report.reason for d in t.dead_letters(orders)] == [DeadReason.REJECTED]

    run(main())


def test_keys_are_forgotten_after_their_time() -> None:
    """After ttl the same id is handled again."""
    bus, seen = Bus("memory://"), []
    bus.on(orders, idempotent=Idempotency(ttl=100))(lambda order: seen.append(order.id))

    async def main() -> None:
        async with TestBus(bus) as t:
            await twice(bus, Order(id="1"))
            await t.drain()
            await t.advance(200)
            await twice(bus, Order(id="1"))
            await t.drain()

    run(main())

    assert seen == ["1", "1"]


def test_a_duplicate_request_gets_the_stored_answer() -> None:
    """The handler runs once; both callers get its answer."""
    bus, calls = Bus("memory://"), []
    price = RequestReply("price", Order, str)

    @bus.on(price, idempotent=Idempotency(key="id"))
    async def quote(order: Order) -> str:
        calls.append(order.id)
        return f"answer {len(calls)}"

    async def main() -> None:
        async with TestBus(bus):
            assert await bus.request(price, Order(id="1")) == "answer 1"
            assert await bus.request(price, Order(id="1")) == "answer 1"

    run(main())


def test_batches_are_deduplicated_item_by_item() -> None:
    """Duplicates are left out of a batch; what fails is released, what succeeds is done."""
    bus, batches = Bus("memory://"), []

    @bus.on(orders, batch=10, idempotent=Idempotency(key="id"), retry=Retry(attempts=2))
    async def handle(batch: list[Delivery[Order]]) -> None:
        batches.append([d.payload.id for d in batch])
        bad = {i: ValueError("x") for i, d in enumerate(batch) if d.payload.id == "bad" and d.attempt == 1}
        if bad:
            raise BatchFailed(bad)

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send_many(orders, [Order(id=i) for i in ("1", "bad", "2", "1")])
            await t.drain()
            assert t.dead_letters(orders) == []

    run(main())

    assert batches == [["1", "bad", "2"], ["bad"]]


class Flaky(MemoryStore):
    """A store that is away while `away` is set."""

    away = False

    async def claim(self, claims: Sequence[Claim]) -> Any:
        self.check()
        return await super().claim(claims)

    async def complete(self, completions: Any) -> Any:
        self.check()
        return await super().complete(completions)

    async def release(self, claims: Any) -> None:
        self.check()
        await super().release(claims)

    async def extend(self, claims: Any) -> Any:
        self.check()
        return await super().extend(claims)

    def check(self) -> None:
        if type(self).away:
            raise StoreUnavailable("the store is away")


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    monkeypatch.setattr("msgbus._guards.store_class", lambda _: Flaky)
    monkeypatch.setattr(Flaky, "away", True)
    return Flaky


def test_while_the_store_is_away_nothing_is_handled(flaky: type[Flaky]) -> None:
    """By default a message waits for the store, health says so, and it is handled once the store is back."""
    bus, seen = Bus("memory://"), []
    bus.on(orders, idempotent=True)(lambda order: seen.append(order.id))

    async def main() -> None:
        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"))
            await eventually(lambda: not bus.health().ok)
            assert bus.health().store == Health(False, "the store is away")
            assert seen == []
            flaky.away = False
            await eventually(lambda: seen)
            assert bus.health().ok

    run(main())

    assert seen == ["1"]


def test_availability_can_be_chosen_over_protection(flaky: type[Flaky]) -> None:
    """With on_store_error="handle" messages are handled although the store is away."""
    bus, seen = Bus("memory://"), []
    bus.on(orders, idempotent=Idempotency(on_store_error="handle"))(lambda order: seen.append(order.id))

    async def main() -> None:
        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"))
            await eventually(lambda: seen)
            assert flaky.away

    run(main())


def test_a_store_that_goes_away_meanwhile_is_waited_for(flaky: type[Flaky]) -> None:
    """A handled message is acked only when the store knows; a failed one's claim ends by itself."""
    bus, seen = Bus("memory://"), []
    flaky.away = False

    @bus.on(orders, idempotent=True, retry=Retry(attempts=1))
    async def handle(order: Order) -> None:
        seen.append(order.id)
        flaky.away = True
        if order.id == "fails":
            raise RuntimeError("x")

    async def main() -> None:
        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"))
            await eventually(lambda: seen)
            await asyncio.sleep(0.15)
            assert (await bus.stats(orders)).in_flight == 1
            flaky.away = False
            await eventually(lambda: bus._open.receivers["orders"].held == 0)
            await bus.send(orders, Order(id="fails"))
            await eventually(lambda: bus._open.receivers["orders"].held == 0 and len(seen) == 2)
            flaky.away = False
            box = await bus.dead_letters(orders)
            assert len(await box.peek()) == 1

    run(main())


def test_the_store_remembers_across_buses(tmp_path: Any) -> None:
    """With a durable store a restart does not make a duplicate new."""
    seen: list[str] = []

    async def once() -> None:
        bus = Bus(f"sqlite:///{tmp_path}/bus.db")
        bus.on(orders, idempotent=True)(lambda order: seen.append(order.id))
        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"), id="same")
            await eventually(lambda: seen)
            await eventually(lambda: bus._open.receivers["orders"].held == 0)

            async def empty() -> bool:
                stats = await bus.stats(orders)
                return (stats.ready, stats.in_flight) == (0, 0)

            await eventually(empty)

    run(once())
    run(once())

    assert seen == ["1"]


def test_verdicts_are_values() -> None:
    """Two grants are equal; a store's answers can be compared in tests."""
    assert Granted() == Granted()
