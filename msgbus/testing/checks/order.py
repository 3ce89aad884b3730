"""F. Messages of one key are handled in order and one at a time; different keys run side by side."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from msgbus import Bus, Delivery, Queue, Retry
from msgbus.adapter import Nack
from msgbus.testing._check import check
from msgbus.testing.checks.dead_letters import wait_dead
from msgbus.testing.checks.round_trip import numbered
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgbus.adapter import Received, Source
    from msgbus.testing.case import Case

KEYED = Queue("keyed", str, key=lambda payload: payload.partition(":")[0])


def spread(count: int, keys: int) -> list[str]:
    """Return *count* payloads ``key:number`` over *keys* keys, in turn."""
    return [f"k{n % keys}:{n // keys}" for n in range(count)]


class Line:
    """What handlers saw, by key; fails the check on two at once or out of order."""

    def __init__(self) -> None:
        self.finished: dict[str, list[int]] = defaultdict(list)
        self.running: Counter[str] = Counter()
        self.problems: list[str] = []
        self.duplicates = 0
        self.most_at_once = 0

    def begin(self, payload: str) -> None:
        """Note that a handler began."""
        key, _, number = payload.partition(":")
        done = self.finished[key]
        if self.running[key]:
            self.problems.append(f"{payload} began while another message of {key} was being handled")
        if done and int(number) <= done[-1]:
            self.duplicates += 1
        elif int(number) != len(done):
            self.problems.append(f"{payload} began after {key}:{done[-1] if done else 'nothing'}")
        self.running[key] += 1
        self.most_at_once = max(self.most_at_once, self.running.total())

    def end(self, payload: str, *, done: bool = True) -> None:
        """Note that a handler ended."""
        key, _, number = payload.partition(":")
        self.running[key] -= 1
        if done and int(number) == len(self.finished[key]):
            self.finished[key].append(int(number))

    def count(self) -> int:
        """Return how many messages are done."""
        return sum(map(len, self.finished.values()))

    def verify(self, t: Case) -> None:
        """Fail if anything was wrong."""
        assert self.problems == []
        t.duplicates += self.duplicates


@check("F1", needs="order=queue")
async def one_consumer_sees_the_order(t: Case) -> None:
    """One consumer of a queue receives its messages in the order they were published."""
    await _in_order(t, await t.queue(), key=None)


@check("F2", needs="order=key")
async def one_key_is_received_in_order(t: Case) -> None:
    """Messages of one key are received in the order they were published, in however many batches."""
    await _in_order(t, await t.queue(keyed=True), key="k")


async def _in_order(t: Case, source: Source, *, key: str | None) -> None:
    expected = numbered(t.many(300))
    half = len(expected) // 2
    await t.send(source.address, *expected[:half], key=key)
    tap = await t.tap(source, prefetch=50)
    got = await tap.drain(half // 2)
    await t.send(source.address, *expected[half:], key=key)
    got += await tap.drain(len(expected) - len(got))

    assert bodies(got) == expected


@check("F3", needs="order=key")
async def a_key_has_one_owner(t: Case) -> None:
    """While messages of a key are unsettled the key's later ones go to nobody else; other keys do."""
    source = await t.queue(keyed=True)
    first, second = await t.tap(source, prefetch=1), await t.tap(source, prefetch=10)
    held: Sequence[Received] = ()
    for number in range(20):  # a broker may give keys to consumers by their hash: find one that is the first one's
        await t.send(source.address, b"0", b"1", b"2", key=f"held{number}")
        if held := await first.subscription.receive(1, 3.0):
            break
        await second.drain(3)
    await second.expect_nothing()
    # Of so many others some belong to the second one.
    await t.publish(t.message(source.address, b"free", key=f"free{n}") for n in range(20))
    got = await second.take()
    await second.ack(*got)
    more = await second.take_all()
    await second.ack(*more)
    await first.ack(*held)
    await first.aclose()
    rest = await second.drain(22 - len(got) - len(more))

    assert bodies(held) == [b"0"]
    assert set(bodies(got + more)) == {b"free"}
    assert [body for body in bodies(rest) if body != b"free"] == [b"1", b"2"]


@check("F4", needs="order=key")
async def nacked_messages_come_back_in_order(t: Case) -> None:
    """Messages of a key that are nacked together come back in the order they were received, before later ones."""
    source = await t.queue(keyed=True)
    await t.send(source.address, *numbered(6), key="k")
    tap = await t.tap(source, prefetch=3)
    received = await tap.subscription.receive(3, 5.0)  # an adapter may hand out only one of a key at a time
    await tap.settle([Nack(m, headers=dict(m.headers), counted=n == 0) for n, m in enumerate(received)])
    await tap.aclose()
    tap = await t.tap(source)

    assert bodies(await tap.drain(6)) == numbered(6)


@check("F5", needs="order=key max_delay")
async def a_delayed_nack_delays_its_key(t: Case) -> None:
    """While a nacked message waits for its delay its key waits with it, and other keys go on."""
    source = await t.queue(keyed=True)
    await t.send(source.address, b"0", b"1", b"2", key="slow")
    tap = await t.tap(source, prefetch=1)
    (first,) = await tap.take()
    await tap.nack(first, delay=5 * t.tick)
    await t.send(source.address, b"other", key="quick")
    assert bodies(await tap.drain(1)) == [b"other"]
    await tap.expect_nothing()

    assert bodies(await tap.drain(3)) == [b"0", b"1", b"2"]


def _handle_in_order(bus: Bus, line: Line, t: Case, *, failing: float = 0.0, concurrency: int = 8) -> None:
    """Register a handler that notes order, and fails sometimes but never twice."""
    failed: set[str] = set()
    dice = random.Random(7)  # noqa: S311 - the same failures in every run
    retry = Retry(attempts=10, base=t.tick, factor=1.0, jitter=False)

    @bus.on(KEYED, concurrency=concurrency, retry=retry)
    async def handle(payload: str) -> None:
        line.begin(payload)
        done = False
        try:
            await asyncio.sleep(dice.random() * 0.004)
            if payload not in failed and dice.random() < failing:
                failed.add(payload)
                raise RuntimeError("once")
            done = True
        finally:
            line.end(payload, done=done)


@check("F6", needs="order=key", timeout=120)
async def keys_are_handled_in_order(t: Case) -> None:
    """Sixteen keys handled by eight handlers at once: each key in order and one at a time."""
    line, payloads = Line(), spread(t.many(800), 16)
    bus = t.bus()
    _handle_in_order(bus, line, t)
    async with bus:
        await bus.start()
        for payload in payloads:
            await bus.send(KEYED, payload)
        await t.eventually(lambda: line.count() == len(payloads), within=60)

    line.verify(t)
    t.note(most_at_once=line.most_at_once)


@check("F7", needs="order=key max_delay", timeout=180)
async def order_survives_failures(t: Case) -> None:
    """Order per key holds while every tenth message fails and is retried: the key waits, the others go on."""
    line, payloads = Line(), spread(t.many(320), 16)
    bus = t.bus()
    _handle_in_order(bus, line, t, failing=0.1)
    async with bus:
        await bus.start()
        await bus.send_many(KEYED, payloads)
        await t.eventually(lambda: line.count() == len(payloads), within=90)

    line.verify(t)


@check("F8", needs="order=key", timeout=180, duplicates=200)
async def order_survives_members_coming_and_going(t: Case) -> None:
    """Order per key holds while consumers join and leave; what they leave behind is handled by the others."""
    line, payloads = Line(), spread(t.many(600), 16)
    stay = t.bus()
    _handle_in_order(stay, line, t, concurrency=4)
    async with stay:
        await stay.start()
        sending = asyncio.create_task(stay.send_many(KEYED, payloads))
        for _ in range(4):
            guest = t.bus()
            _handle_in_order(guest, line, t, concurrency=4)
            async with guest:
                await guest.start()
                await t.pause(0.5)
        await sending
        await t.eventually(lambda: line.count() == len(payloads), within=90)

    line.verify(t)


@check("F9", needs="order=key")
async def different_keys_run_side_by_side(t: Case) -> None:
    """Eight keys are handled at the same time by one consumer, whatever partition or queue they share."""
    meeting = asyncio.Barrier(8)
    done: list[str] = []
    bus = t.bus()

    @bus.on(KEYED, concurrency=8)
    async def handle(payload: str) -> None:
        async with asyncio.timeout(10 * t.harness.patience):
            await meeting.wait()
        done.append(payload)

    async with bus:
        await bus.send_many(KEYED, [f"k{n}:0" for n in range(8)])
        await bus.start()
        await t.eventually(lambda: len(done) == 8)


@check("F10", needs="order=key")
async def a_dead_letter_frees_its_key(t: Case) -> None:
    """When a message is dead-lettered its key goes on with the next one."""
    seen: list[str] = []
    bus = t.bus()

    @bus.on(KEYED, retry=Retry(attempts=1))
    async def handle(payload: str) -> None:
        seen.append(payload)
        if payload == "k:0":
            raise RuntimeError("bad")

    async with bus:
        await bus.send_many(KEYED, ["k:0", "k:1", "k:2"])
        await bus.start()
        await t.eventually(lambda: len(seen) == 3)
        await wait_dead(t, await bus.dead_letters(KEYED), 1)

    assert seen == ["k:0", "k:1", "k:2"]


@check("F11", needs="order=key park_keys")
async def a_parked_key_waits_for_its_dead_letter(t: Case) -> None:
    """With ``park`` a key waits behind its dead letter; the replay comes first, then the ones that waited."""
    seen: list[tuple[str, int]] = []
    broken = True
    bus = t.bus()

    @bus.on(KEYED, retry=Retry(attempts=1), park=True)
    async def handle(payload: str, delivery: Delivery[str]) -> None:
        if payload == "k:0" and broken:
            raise RuntimeError("bad")
        seen.append((payload, delivery.attempt))

    async with bus:
        await bus.send_many(KEYED, ["k:0", "k:1", "other:0", "k:2"])
        await bus.start()
        box = await bus.dead_letters(KEYED)
        await wait_dead(t, box, 1)
        await t.eventually(lambda: seen)
        await t.pause(3)
        assert seen == [("other:0", 1)]
        broken = False
        await box.replay()
        await t.eventually(lambda: len(seen) == 4)

    assert seen[1:] == [("k:0", 1), ("k:1", 1), ("k:2", 1)]


@check("F12", needs="order=key park_keys")
async def dropping_a_dead_letter_frees_its_parked_key(t: Case) -> None:
    """A key parked behind several dead letters waits for the last of them, and dropping them frees it."""
    source = await t.queue(keyed=True)
    await t.send(source.address, *numbered(4), key="k")
    tap = await t.tap(source)
    first, second = await tap.take(2)
    await tap.bury(first, second, park=True)
    await tap.expect_nothing()
    dead = await t.tap(source.dead_letters)
    first, second = await dead.take(2)
    await dead.ack(first)
    await tap.expect_nothing()
    await dead.ack(second)

    assert bodies(await tap.drain(2)) == [b"2", b"3"]
