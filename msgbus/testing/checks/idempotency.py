"""H. What arrives twice is handled once, and what failed is not mistaken for handled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgbus import Delivery, Idempotency, Queue, RequestReply, Retry, Topic
from msgbus.adapter import Source
from msgbus.testing._check import check
from msgbus.testing.checks.dead_letters import wait_dead
from msgbus.testing.checks.retry import quick

if TYPE_CHECKING:
    from msgbus.testing.case import Case

WORK = Queue("work", str)


async def all_done(t: Case, bus: Any, queue: Queue[Any] = WORK) -> None:
    """Wait until nothing is ready, in flight or delayed."""

    async def empty() -> bool:
        stats = await bus.stats(queue)
        return not (stats.ready or stats.in_flight or stats.delayed)

    await t.eventually(empty, what="the queue is empty")


@check("H1")
async def a_duplicate_is_handled_once(t: Case) -> None:
    """Messages published again with the same id are handled once and acked; one with another id is handled."""
    seen: list[str] = []
    bus = t.bus()

    @bus.on(WORK, idempotent=Idempotency(lease=t.lease))
    async def handle(payload: str) -> None:
        seen.append(payload)

    async with bus:
        for _ in range(5):
            await bus.send(WORK, "x", id="same")
        await bus.start()
        await bus.send(WORK, "x", id="same")
        await bus.send(WORK, "y", id="other")
        await t.eventually(lambda: "y" in seen)
        await all_done(t, bus)

    assert sorted(seen) == ["x", "y"]


@check("H2", needs="max_delay")
async def a_failure_is_not_remembered_as_done(t: Case) -> None:
    """A handler that fails releases its claim: the retry is handled, and only then duplicates are not."""
    seen: list[int] = []
    bus = t.bus()

    @bus.on(WORK, idempotent=True, retry=quick(t, 3))
    async def handle(_: str, delivery: Delivery[str]) -> None:
        seen.append(delivery.attempt)
        if len(seen) == 1:
            raise RuntimeError("once")

    async with bus:
        await bus.start()
        await bus.send(WORK, "x", id="same")
        await t.eventually(lambda: len(seen) == 2)
        await bus.send(WORK, "x", id="same")
        await t.pause(2)
        await all_done(t, bus)

    assert seen == [1, 2]


@check("H3", needs="groups")
async def groups_remember_apart(t: Case) -> None:
    """The same id in another group is handled there too."""
    topic = Topic("news", str)
    seen: list[str] = []
    bus = t.bus()

    @bus.on(topic, group="one", idempotent=True)
    async def one(_: str) -> None:
        seen.append("one")

    @bus.on(topic, group="two", idempotent=True)
    async def two(_: str) -> None:
        seen.append("two")

    async with bus:
        await bus.start()
        for _ in range(3):
            await bus.publish(topic, "x", id="same")
        await t.eventually(lambda: len(seen) >= 2)
        await t.pause(3)

    assert sorted(seen) == ["one", "two"]


@check("H4")
async def another_payload_under_one_key_is_an_error(t: Case) -> None:
    """A key that comes again with another payload is dead-lettered as a mismatch, not silently dropped."""
    queue = Queue("orders", dict)
    seen: list[Any] = []
    bus = t.bus()

    @bus.on(queue, idempotent=Idempotency(key="id"), concurrency=1)
    async def handle(payload: dict[str, Any]) -> None:
        seen.append(payload)

    async with bus:
        await bus.start()
        await bus.send(queue, {"id": "1", "total": 5})
        await t.eventually(lambda: seen)
        await bus.send(queue, {"id": "1", "total": 5})
        await bus.send(queue, {"id": "1", "total": 6})
        (dead,) = await wait_dead(t, await bus.dead_letters(queue), 1)

    assert seen == [{"id": "1", "total": 5}]
    assert dead.report.reason == "mismatch"


@check("H5", needs="max_delay")
async def a_duplicate_waits_for_the_first(t: Case) -> None:
    """A duplicate that comes while the first is being handled waits; if the first fails the duplicate is handled."""
    gate = asyncio.Event()
    running: list[str] = []
    seen: list[str] = []
    bus = t.bus()

    @bus.on(WORK, idempotent=Idempotency(lease=2 * t.lease), concurrency=4, retry=quick(t, 1))
    async def handle(payload: str) -> None:
        assert not running, "two at once"
        running.append(payload)
        try:
            await gate.wait()
            seen.append(payload)
            if len(seen) == 1:
                raise RuntimeError("the first one fails")
        finally:
            running.clear()

    async with bus:
        await bus.start()
        await bus.send(WORK, "x", id="same")
        # Sent like replays: a broker that deduplicates by id would not take a second one otherwise.
        source = Source(WORK.address(t.prefix))
        _, body = WORK.encode("x")
        await t.publish([t.message(source, body, id="same") for _ in range(2)])
        await t.eventually(lambda: running)
        await t.pause(2)
        gate.set()
        await t.eventually(lambda: len(seen) == 2, within=30)
        await wait_dead(t, await bus.dead_letters(WORK), 1)
        await all_done(t, bus)

    assert seen == ["x", "x"]


@check("H6", needs="max_delay", timeout=90)
async def a_killed_claimant_is_replaced(t: Case) -> None:
    """When a worker dies with its claim the message is handled by another one once the claim's lease is over."""
    seen: list[str] = []
    started = asyncio.Event()
    options = Idempotency(lease=t.lease)
    dying, other = t.bus(drain_timeout=0), t.bus()

    @dying.on(WORK, idempotent=options)
    async def hang(_: str) -> None:
        started.set()
        await asyncio.sleep(1000)

    @other.on(WORK, idempotent=options)
    async def handle(payload: str) -> None:
        seen.append(payload)

    async with dying, other:
        await dying.start()
        await dying.send(WORK, "x", id="same")
        await started.wait()
        session = dying._session  # noqa: SLF001 - a death without goodbye: its claim is not released
        assert session is not None
        calls = session.guards.calls
        assert calls is not None
        release, calls.store.release = calls.store.release, _forget  # type: ignore[method-assign]
        await dying.drain(timeout=0)
        calls.store.release = release  # type: ignore[method-assign]
        await other.start()
        await t.eventually(lambda: seen, within=30)

    assert seen == ["x"]


async def _forget(claims: object) -> None:
    del claims


@check("H7", needs="requests")
async def a_duplicate_request_gets_the_stored_reply(t: Case) -> None:
    """A request that comes twice is handled once, and both are answered alike."""
    price = RequestReply("price", str, str)
    calls: list[str] = []
    bus = t.bus()

    @bus.on(price, idempotent=Idempotency(key=lambda payload: payload))
    async def quote(query: str) -> str:
        calls.append(query)
        return f"{query} costs {len(calls)}"

    async with bus:
        await bus.start()
        first = await bus.request(price, "tea")
        second = await bus.request(price, "tea")
        third = await bus.request(price, "coffee")

    assert (first, second, third) == ("tea costs 1", "tea costs 1", "coffee costs 2")
    assert calls == ["tea", "coffee"]


@check("H8")
async def each_item_of_a_batch_is_guarded(t: Case) -> None:
    """Batch handlers get each message once too, also when duplicates are in one batch."""
    seen: list[str] = []
    bus = t.bus()

    @bus.on(WORK, idempotent=Idempotency(lease=t.lease), batch=10, batch_wait=t.tick, retry=Retry(attempts=1))
    async def handle(payloads: list[str]) -> None:
        seen.extend(payloads)

    async with bus:
        for number in range(20):
            await bus.send(WORK, f"m{number % 5}", id=f"id-{number % 5}")
        await bus.start()
        await t.eventually(lambda: len(set(seen)) == 5)
        await all_done(t, bus)

    assert sorted(seen) == [f"m{n}" for n in range(5)]
