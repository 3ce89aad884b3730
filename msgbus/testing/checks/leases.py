"""G. A message belongs to one consumer at a time; who loses it is told and can do no harm."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from msgbus import Delivery, Queue
from msgbus._time import SystemClock
from msgbus.adapter import Ack, DeadLetter, Nack
from msgbus.errors import LeaseLost
from msgbus.testing._check import check
from msgbus.testing.checks.round_trip import complete, numbered

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgbus.adapter import Outcome, Received, Source
    from msgbus.testing.case import Case

WORK = Queue("work", str)


class GatedClock(SystemClock):
    """The system's clock, whose sleepers wake up late while the gate is closed: what a stopped process sees."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def sleep(self, delay: float) -> None:
        """Sleep, and then until the gate is open."""
        await asyncio.sleep(delay)
        await self.gate.wait()


@check("G1", needs="lease")
async def an_abandoned_message_comes_again(t: Case) -> None:
    """A message that is neither settled nor extended goes to another consumer when its lease ends, not earlier."""
    source = await t.queue()
    await t.send(source.address, b"x")
    tap = await t.tap(source, lease=t.lease)
    before = time.monotonic()
    await tap.take()
    other = await t.tap(source, lease=t.lease)
    (again,) = await other.take()
    took = time.monotonic() - before

    assert again.body == b"x"
    assert took >= 0.95 * t.lease, f"came after {took:.2f} s of a lease of {t.lease:g} s"
    t.note(lateness_ms=round((took - t.lease) * 1000))
    await other.ack(again)


@check("G2", needs="lease=renewable")
async def an_extended_lease_lasts(t: Case) -> None:
    """A message whose lease is extended is not given to others, for however many leases."""
    source = await t.queue()
    await t.send(source.address, b"x")
    tap = await t.tap(source, lease=t.lease)
    (held,) = await tap.take()
    other = await t.tap(source, lease=t.lease)
    last = time.monotonic()
    end = last + 3 * t.lease
    while (now := time.monotonic()) < end:
        errors = await tap.subscription.extend([held], t.lease)
        assert list(errors) == [None], f"renewed {now - last:.1f} s after the last time, the lease is {t.lease:g} s"
        last = now
        got = await other.subscription.receive(1, t.lease / 4)
        assert list(got) == []
    await tap.ack(held)

    await other.expect_nothing()


@check("G3", needs="lease")
async def a_late_ack_does_not_hurt_the_new_owner(t: Case) -> None:
    """An ack after the lease was lost is `LeaseLost`: the new owner still has the message."""
    await _late(t, Ack)


@check("G4", needs="lease")
async def a_late_nack_does_not_hurt_the_new_owner(t: Case) -> None:
    """A nack after the lease was lost is `LeaseLost`: it makes no second copy of the message."""
    await _late(t, lambda lost: Nack(lost, headers=dict(lost.headers)))


@check("G5", needs="lease")
async def a_late_dead_letter_does_not_hurt_the_new_owner(t: Case) -> None:
    """Dead-lettering after the lease was lost is `LeaseLost`: the message is not dead while somebody handles it."""
    source = await _late(t, lambda lost: DeadLetter(lost, dict(lost.headers)))
    dead = await t.tap(source.dead_letters)
    await dead.expect_nothing()


async def _late(t: Case, outcome: Callable[[Received], Outcome]) -> Source:
    """Lose a message, settle it all the same, and see that its new owner has it alone."""
    source = await t.queue()
    await t.send(source.address, b"x")
    tap = await t.tap(source, lease=t.lease)
    (lost,) = await tap.take()
    await asyncio.sleep(1.3 * t.lease)
    new = await t.tap(source, lease=20 * t.lease)
    (mine,) = await new.take()
    (error,) = await tap.settle([outcome(lost)])
    third = await t.tap(source, lease=20 * t.lease)

    assert isinstance(error, LeaseLost), f"a late settlement gave {error!r}"
    await third.expect_nothing()
    await new.ack(mine)
    await third.expect_nothing()
    return source


@check("G6", needs="lease=renewable")
async def extending_what_is_lost_says_so(t: Case) -> None:
    """Extending a lost message is `LeaseLost`, for that message alone, and does not take it back."""
    source = await t.queue()
    await t.send(source.address, b"x")
    tap = await t.tap(source, lease=t.lease)
    (lost,) = await tap.take()
    await asyncio.sleep(1.3 * t.lease)
    new = await t.tap(source, lease=20 * t.lease)
    (mine,) = await new.take()
    await t.send(source.address, b"y")
    (kept,) = await tap.take()
    errors = await tap.subscription.extend([lost, kept], 20 * t.lease)

    assert isinstance(errors[0], LeaseLost)
    assert errors[1] is None
    await new.ack(mine)
    await tap.ack(kept)


@check("G7", needs="lease=renewable", timeout=90)
async def a_long_handler_keeps_its_message(t: Case) -> None:
    """A handler that runs for three leases is called once: its lease is renewed by heartbeat."""
    seen: list[int] = []
    buses = [t.bus(lease=t.lease), t.bus(lease=t.lease)]
    for bus in buses:

        @bus.on(WORK)
        async def handle(_: str, delivery: Delivery[str]) -> None:
            seen.append(delivery.attempt)
            await asyncio.sleep(3 * t.lease)

    async with buses[0], buses[1]:
        await buses[0].start()
        await buses[1].start()
        await buses[0].send(WORK, "x")
        await t.eventually(lambda: seen)
        await asyncio.sleep(3.5 * t.lease)
        stats = await buses[0].stats(WORK)

    assert seen == [1]
    assert not stats.ready
    assert not stats.in_flight


@check("G8", needs="lease=renewable", timeout=90)
async def what_waits_in_the_buffer_is_renewed_too(t: Case) -> None:
    """Messages that wait in a consumer for a free handler keep their lease, and are each handled once."""
    seen: list[str] = []
    busy, idle = t.bus(lease=t.lease), t.bus(lease=t.lease)

    async def handle(payload: str) -> None:
        seen.append(payload)
        await asyncio.sleep(0.8 * t.lease)

    busy.on(WORK, concurrency=1, prefetch=4)(handle)
    idle.on(WORK, concurrency=4)(handle)
    async with busy, idle:
        await busy.send_many(WORK, list("abcd"))
        await busy.start()
        await t.eventually(lambda: seen)
        await t.pause(1)
        await idle.start()
        await t.eventually(lambda: len(seen) >= 4)
        await t.pause(1)

    t.count_handled(seen, list("abcd"))


@check("G9", needs="lease=renewable", timeout=90)
async def who_loses_a_lease_is_told(t: Case) -> None:
    """A consumer that stood still longer than its lease has its handler cancelled, and disturbs nobody."""
    clock = GatedClock()
    told = asyncio.Event()
    seen: list[str] = []
    stopped, other = t.bus(clock=clock, lease=t.lease), t.bus(lease=t.lease)

    @stopped.on(WORK)
    async def hang(_: str) -> None:
        seen.append("stopped")
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            told.set()
            raise

    @other.on(WORK)
    async def handle(_: str) -> None:
        seen.append("other")
        await asyncio.sleep(2 * t.lease)

    async with stopped, other:
        await stopped.start()
        await stopped.send(WORK, "x")
        await t.eventually(lambda: seen)
        clock.gate.clear()
        await asyncio.sleep(1.3 * t.lease)
        await other.start()
        await t.eventually(lambda: len(seen) == 2)
        clock.gate.set()
        await asyncio.wait_for(told.wait(), 10 * t.harness.patience)
        await asyncio.sleep(2.5 * t.lease)
        stats = await other.stats(WORK)

    assert seen == ["stopped", "other"]
    assert not stats.ready
    assert not stats.in_flight


@check("G11", needs="lease=renewable", timeout=90)
async def what_is_lost_holds_up_nobody(t: Case) -> None:
    """A consumer that lost running and waiting messages forgets them, and goes on with the next ones."""
    await _lose_and_go_on(t, WORK)


@check("G12", needs="lease=renewable order=key", timeout=90)
async def what_is_lost_holds_up_no_key(t: Case) -> None:
    """The same with keys: the keys of lost messages go on, in order, where they are now and later here again."""
    await _lose_and_go_on(t, Queue("keyed", str, key=lambda payload: payload.partition(":")[0]))


async def _lose_and_go_on(t: Case, queue: Queue[str]) -> None:
    clock = GatedClock()
    began = asyncio.Event()
    here: list[str] = []
    there: list[str] = []
    stopped, other = t.bus(clock=clock, lease=t.lease), t.bus()

    @stopped.on(queue, concurrency=1, prefetch=10)
    async def hang_once(payload: str) -> None:
        if not began.is_set():
            began.set()
            await asyncio.sleep(1000)
        here.append(payload)

    @other.on(queue)
    async def handle(payload: str) -> None:
        there.append(payload)

    first = [f"{key}:{number}" for number in range(3) for key in "ab"]
    later = [f"{key}:{number}" for number in range(3, 9) for key in "abc"]
    async with stopped:
        await stopped.send_many(queue, first)
        await stopped.start()
        await began.wait()
        await t.pause(1)
        clock.gate.clear()
        await asyncio.sleep(1.3 * t.lease)
        async with other:
            await other.start()
            await t.eventually(lambda: set(there) >= set(first), within=30)
            clock.gate.set()
            await asyncio.sleep(t.lease)
        await stopped.send_many(queue, later)
        await t.eventually(lambda: set(here) | set(there) >= {*first, *later}, within=30)

    t.count_handled(here + there, first + later)
    if queue.keyed:
        for key in "abc":
            assert [p for p in here if p in later and p[0] == key] == [p for p in later if p[0] == key]


@check("G10", needs="lease")
async def others_are_not_lost_with_one(t: Case) -> None:
    """When some of a consumer's messages are lost, the ones it settled in time stay settled, each by itself."""
    source = await t.queue()
    await t.send(source.address, *numbered(4))
    tap = await t.tap(source, lease=t.lease)
    held = await tap.take(4)
    await tap.ack(*held[:2])
    await asyncio.sleep(1.3 * t.lease)
    other = await t.tap(source, lease=20 * t.lease)

    complete(await other.drain(2), [m.body for m in held[2:]])
    await other.expect_nothing()
