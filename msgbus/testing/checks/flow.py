"""K. Nobody is flooded: bounded messages in hand, exact concurrency, and slow channels that hold up no others."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

from msgbus import Queue
from msgbus.testing._check import check

if TYPE_CHECKING:
    from msgbus.testing.case import Case

WORK = Queue("work", str)
_WAITING = 64_000_000
"""Bytes that wait for a standing worker, in as many messages as the harness likes."""
_SLACK = 8_000_000
"""Bytes by which a process may grow for reasons of its own."""


@check("K1")
async def concurrency_is_exact(t: Case) -> None:
    """As many handlers run at once as asked for: no more, and no fewer while there is work."""
    running = most = 0
    done: list[str] = []
    bus = t.bus()

    @bus.on(WORK, concurrency=7)
    async def handle(payload: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.5 * t.tick)
        running -= 1
        done.append(payload)

    async with bus:
        await bus.send_many(WORK, [str(n) for n in range(50)])
        await bus.start()
        await t.eventually(lambda: len(done) >= 50)

    assert most == 7
    t.count_handled(done, [str(n) for n in range(50)])


@check("K2")
async def a_slow_handler_holds_no_more_than_its_prefetch(t: Case) -> None:
    """With hundreds of messages waiting and a handler that stands still a process holds no more than its prefetch."""
    gate = asyncio.Event()
    done: list[str] = []
    bus = t.bus()

    @bus.on(WORK, concurrency=2, prefetch=10)
    async def handle(payload: str) -> None:
        await gate.wait()
        done.append(payload)

    count = t.many(300)
    async with bus:
        await bus.send_many(WORK, [str(n) for n in range(count)])
        await bus.start()
        await t.pause(3)
        (receiver,) = bus._open.receivers.values()  # noqa: SLF001 - what a process holds is nobody else's to see
        held = receiver.held
        gate.set()
        await t.eventually(lambda: len(done) >= count, within=60)

    assert 2 <= held <= 10
    t.count_handled(done, [str(n) for n in range(count)])


@check("K3")
async def a_slow_channel_starves_no_other(t: Case) -> None:
    """A channel whose handler stands still does not hold up another channel of the same bus."""
    slow, quick = Queue("slow", str), Queue("quick", str)
    gate = asyncio.Event()
    done: list[str] = []
    bus = t.bus()

    @bus.on(slow, concurrency=1)
    async def stand_still(_: str) -> None:
        await gate.wait()

    @bus.on(quick)
    async def handle(payload: str) -> None:
        done.append(payload)

    async with bus:
        await bus.send_many(slow, [str(n) for n in range(100)])
        await bus.start()
        await t.pause(1)
        started = time.monotonic()
        await bus.send_many(quick, [str(n) for n in range(100)])
        await t.eventually(lambda: len(done) >= 100)
        took = time.monotonic() - started
        gate.set()

    assert took < 5 * t.harness.patience
    t.count_handled(done, [str(n) for n in range(100)])


@check("K4")
async def concurrent_sends_are_all_confirmed(t: Case) -> None:
    """A thousand sends at once wait for their turn and are each confirmed and handled."""
    count = t.many(1_000)
    async with t.bus() as bus:
        await asyncio.gather(*(bus.send(WORK, str(n)) for n in range(count)))
        stats = await bus.stats(WORK)
        done: list[str] = []

    consumer = t.bus()

    @consumer.on(WORK)
    async def handle(payload: str) -> None:
        done.append(payload)

    async with consumer:
        await consumer.start()
        await t.eventually(lambda: len(done) >= count, within=60)

    assert stats.ready in (None, count)
    t.count_handled(done, [str(n) for n in range(count)])


@check("K5")
async def a_subscription_can_pause(t: Case) -> None:
    """A paused subscription receives nothing, beyond what it held; resumed, it goes on; nothing is lost."""
    done: list[str] = []
    bus = t.bus()

    @bus.on(WORK)
    async def handle(payload: str) -> None:
        done.append(payload)

    async with bus:
        await bus.start()
        await bus.send(WORK, "before")
        await t.eventually(lambda: done == ["before"])
        await bus.pause(WORK)
        await bus.send_many(WORK, ["one", "two"])
        await t.pause(3)
        while_paused = list(done)
        await bus.resume(WORK)
        await t.eventually(lambda: len(done) >= 3)

    assert while_paused == ["before"]
    t.count_handled(done, ["before", "one", "two"])


@check("K6", needs="multi_process", timeout=240)
async def memory_stays_flat(t: Case) -> None:
    """A worker whose handler stands still does not grow, however much waits: it holds its prefetch and no more."""
    count = t.many(100_000)
    body = "x" * min(_WAITING // count, t.capabilities.max_body // 2, 20_000)
    async with t.bus() as bus:
        await bus.send(WORK, "first")
        worker = t.worker("hang", concurrency=4)
        await asyncio.to_thread(worker.wait_for_line, "began first", 30 * t.harness.patience)
        await t.pause(2)
        before = worker.memory()
        await bus.send_many(WORK, itertools.repeat(body, count))
        await asyncio.to_thread(worker.wait_for_line, "began xxx", 30 * t.harness.patience)
        await t.pause(10)
        grown = worker.memory() - before
        worker.kill()

    t.note(waiting_mb=round(len(body) * count / 1e6), grown_mb=round(grown / 1e6))
    assert grown < max(_SLACK, len(body) * count // 4), f"the worker grew by {grown / 1e6:.0f} MB"
