"""E, I, J. When the broker is away: what raises was not sent, what returns was, and everything goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING

from msgbus import Queue, RequestReply
from msgbus.adapter import ID
from msgbus.errors import BrokerUnavailable, NotSent, PublishError, PublishRejected, RequestTimeout
from msgbus.testing._check import check
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from msgbus import Bus
    from msgbus.testing.case import Case

WORK = Queue("work", str)


def _collect(bus: Bus) -> list[str]:
    seen: list[str] = []

    @bus.on(WORK)
    async def handle(payload: str) -> None:
        seen.append(payload)

    return seen


async def _survive(t: Case, fault: Callable[[], Awaitable[None]]) -> None:
    """Publish and consume across *fault*; the publish that began in it succeeds once it is over."""
    publisher, consumer = t.bus(publish_timeout=60), t.bus()
    seen = _collect(consumer)
    async with publisher, consumer:
        await consumer.start()
        await publisher.send(WORK, "before")
        await t.eventually(lambda: "before" in seen)
        await fault()
        waiting = asyncio.create_task(publisher.send(WORK, "during"))
        await asyncio.sleep(2)
        was_healthy = consumer.health().ok and publisher.health().ok
        await t.harness.heal()
        healed = time.monotonic()
        await asyncio.wait_for(waiting, 60 * t.harness.patience)
        await publisher.send(WORK, "after")
        await t.eventually(lambda: {"during", "after"} <= set(seen), within=60)
        t.note(healthy_during=was_healthy, recovery_s=round(time.monotonic() - healed, 1))
        await t.eventually(lambda: consumer.health().ok and publisher.health().ok, within=30)

    t.count_handled(seen, ["before", "during", "after"])


@check("J10", needs="hook:cut hook:heal", timeout=180, duplicates=3)
async def a_cut_is_survived(t: Case) -> None:
    """Cut connections are made again by publishers and consumers without help; health is red during it, green after."""
    await _survive(t, t.harness.cut)

    assert t.notes["healthy_during"] is False, "health was green while the broker was cut off"


@check("J11", needs="hook:pause hook:heal", timeout=180, duplicates=3)
async def a_stalled_connection_is_survived(t: Case) -> None:
    """A broker that stops answering without closing (half-open) is survived without help."""
    await _survive(t, t.harness.pause)


@check("J12", needs="hook:cut hook:heal", timeout=180)
async def what_was_not_sent_never_appears(t: Case) -> None:
    """A publish during an outage raises by its timeout, and what raised `NotSent` never appears."""
    publisher, consumer = t.bus(publish_timeout=1.5), t.bus()
    seen = _collect(consumer)
    not_sent: list[str] = []
    async with publisher, consumer:
        await publisher.send(WORK, "before")
        await t.harness.cut()
        started = time.monotonic()
        for number in range(5):
            error = await t.raises((PublishError, BrokerUnavailable), publisher.send(WORK, f"lost {number}"))
            if isinstance(error, NotSent | BrokerUnavailable):
                not_sent.append(f"lost {number}")
        took = time.monotonic() - started
        await t.harness.heal()
        await t.eventually(lambda: _try(publisher, "after"), within=60)
        await consumer.start()
        await t.eventually(lambda: "after" in seen, within=60)
        await t.pause(3)

    assert took < 5 * (1.5 + 3 * t.harness.patience)
    assert set(seen) & set(not_sent) == set()
    t.note(not_sent=len(not_sent))


async def _try(bus: Bus, payload: str) -> bool:
    try:
        await bus.send(WORK, payload)
    except (PublishError, BrokerUnavailable):
        return False
    return True


@check("J13", needs="hook:cut hook:heal", timeout=120)
async def opening_without_a_broker_says_so(t: Case) -> None:
    """Opening while the broker cannot be reached raises `BrokerUnavailable`, in time, and works afterwards."""
    await t.harness.cut()
    started = time.monotonic()
    try:
        await t.raises(BrokerUnavailable, t.bus().__aenter__())
    finally:
        await t.harness.heal()
    took = time.monotonic() - started
    async with t.bus() as bus:
        await bus.send(WORK, "x")

    assert took < 20 + 5 * t.harness.patience


@check("J14", needs="durable hook:kill", timeout=240, duplicates=2_000)
async def a_killed_broker_loses_nothing_confirmed(t: Case) -> None:
    """When the broker is killed (SIGKILL) under load all that was confirmed is handled once it is back."""
    bus = t.bus(publish_timeout=90, lease=5 * t.lease)  # what is on its way when the broker ends comes again then
    seen = _collect(bus)
    confirmed: list[str] = []
    each = t.many(50)

    async def publish(worker: int) -> None:
        for number in range(each):
            await bus.send(WORK, f"{worker}.{number}")
            confirmed.append(f"{worker}.{number}")

    async with bus:
        await bus.start()
        async with asyncio.TaskGroup() as group:
            for worker in range(10):
                group.create_task(publish(worker))
            await t.eventually(lambda: len(confirmed) > 2 * each)
            await t.harness.kill()
        await t.eventually(lambda: set(seen) >= set(confirmed), within=120)

    t.count_handled(seen, confirmed)


@check("I1", needs="hook:fill")
async def a_full_queue_refuses(t: Case) -> None:
    """A message that the broker refuses (a full queue) raises `PublishRejected`; the next one's result is its own."""
    full, free = await t.queue(), await t.queue()
    await t.harness.fill(full.address)
    for turn in range(3):
        results = await t.adapter.publish(
            [t.message(free.address, b"%d" % turn), t.message(full.address, b"no"), t.message(free.address, b"more")]
        )
        assert isinstance(results[1], PublishRejected), f"the refused message's result is {results[1]!r}"
        assert (results[0], results[2]) == (None, None)
    tap = await t.tap(free)

    assert sorted(bodies(await tap.drain(6))) == sorted([b"0", b"1", b"2", *[b"more"] * 3])


@check("I2", needs="unroutable")
async def each_result_is_its_own(t: Case) -> None:
    """Of concurrent publishes, every other one to nowhere, exactly those fail: no confirm is taken for another's."""
    from msgbus.adapter import Address, Kind  # noqa: PLC0415

    source = await t.queue()
    nowhere = Address(Kind.QUEUE, t.name("nowhere"))
    targets = [nowhere if n % 2 else source.address for n in range(60)]
    results = await asyncio.gather(*(t.adapter.publish([t.message(a, b"%d" % n)]) for n, a in enumerate(targets)))
    tap = await t.tap(source)

    assert [result[0] is None for result in results] == [target is source.address for target in targets]
    assert sorted(bodies(await tap.drain(30))) == sorted(b"%d" % n for n in range(0, 60, 2))


@check("E14", needs="lease hook:cut hook:heal", timeout=180)
async def a_failed_burial_loses_nothing(t: Case) -> None:
    """When a dead letter cannot be stored the message stays: after the outage it is here or there, or both."""
    source = await t.queue()
    tap = await t.tap(source, lease=t.lease)
    (sent,) = await t.send(source.address, b"x")
    (received,) = await tap.take()
    await t.harness.cut()
    burial = asyncio.create_task(tap.bury(received))
    await asyncio.sleep(1)
    await t.harness.heal()
    with contextlib.suppress(BrokerUnavailable, AssertionError):  # refused, or not
        await asyncio.wait_for(burial, 60 * t.harness.patience)
    await tap.aclose()
    box = await t.tap(dataclasses.replace(source, dead=True))
    again = await t.tap(source)

    async def found() -> bool:
        both = [*await box.take_all(idle=0.5), *await again.take_all(idle=0.5)]
        return sent.id in {message.headers[ID] for message in both}

    await t.eventually(found, what="the message is neither dead nor waiting", within=60)


@check("J15", needs="requests hook:cut hook:heal", timeout=240)
async def requests_survive_cuts(t: Case) -> None:
    """While connections are cut again and again each request is answered or raises in time; afterwards all work."""
    echo = RequestReply("echo", str, str)
    server, client = t.bus(), t.bus()
    answered = failed = 0

    @server.on(echo, concurrency=8)
    async def answer(text: str) -> str:
        return text

    async def ask(number: int) -> None:
        nonlocal answered, failed
        try:
            assert await client.request(echo, str(number), timeout=5) == str(number)
            answered += 1
        except (RequestTimeout, PublishError, BrokerUnavailable):
            failed += 1

    async with server, client:
        await server.start()
        await ask(0)
        for turn in range(3):
            asked = [asyncio.create_task(ask(100 * turn + n)) for n in range(50)]
            await t.harness.cut()
            await asyncio.sleep(0.5)
            await t.harness.heal()
            await asyncio.wait_for(asyncio.gather(*asked), (10 + 5) * t.harness.patience)
        await t.eventually(lambda: _answers(client, echo), within=60)

    t.note(answered=answered, failed=failed)
    assert answered + failed == 151


async def _answers(client: Bus, echo: RequestReply[str, str]) -> bool:
    try:
        return await client.request(echo, "again", timeout=2) == "again"
    except (RequestTimeout, PublishError, BrokerUnavailable):
        return False


@check("J16", needs="durable hook:restart", timeout=300, duplicates=3_000)
async def a_hundred_publishers_survive_two_restarts(t: Case) -> None:
    """With 100 publishers at work the broker restarts at a third and at a half: all that was confirmed is handled."""
    bus = t.bus(publish_timeout=90, lease=5 * t.lease)  # what is on its way when the broker ends comes again then
    seen = _collect(bus)
    confirmed: list[str] = []
    each = max(1, t.many(10_000) // 100)

    async def publish(worker: int) -> None:
        for number in range(each):
            await bus.send(WORK, f"{worker}.{number}")
            confirmed.append(f"{worker}.{number}")

    async with bus:
        await bus.start()
        async with asyncio.TaskGroup() as group:
            for worker in range(100):
                group.create_task(publish(worker))
            await t.eventually(lambda: len(confirmed) >= 100 * each // 3, within=60)
            await t.harness.restart()
            await t.eventually(lambda: len(confirmed) >= 100 * each // 2, within=60)
            await t.harness.restart()
        await t.eventually(lambda: set(seen) >= set(confirmed), within=120)

    assert len(confirmed) == 100 * each
    t.count_handled(seen, confirmed)
