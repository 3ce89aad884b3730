"""H. Starting and stopping lose nothing, count nothing, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgbus import Delivery, Queue, Retry
from msgbus.errors import ClosedError
from msgbus.testing._check import check
from msgbus.testing.checks.idempotency import all_done

if TYPE_CHECKING:
    from msgbus.testing.case import Case

WORK = Queue("work", str)


@check("H20")
async def a_stop_waits_for_handlers(t: Case) -> None:
    """Draining lets running handlers finish and settles them; nothing further is handled."""
    started: list[str] = []
    finished: list[str] = []
    bus = t.bus()

    @bus.on(WORK, concurrency=2, prefetch=10)
    async def handle(payload: str) -> None:
        started.append(payload)
        await asyncio.sleep(2 * t.tick)
        finished.append(payload)

    async with bus:
        await bus.send_many(WORK, [f"m{n}" for n in range(10)])
        await bus.start()
        await t.eventually(lambda: len(started) >= 2)
        await bus.drain(timeout=30)
        stopped = list(started)
        await t.pause(3)

    assert started == stopped
    assert sorted(finished) == sorted(started)
    await _leftovers(t, {f"m{n}" for n in range(10)} - set(finished))


async def _leftovers(t: Case, expected: set[str]) -> None:
    """See that exactly the *expected* messages are left for the next bus, all at attempt 1 where that is exact."""
    seen: dict[str, int] = {}
    bus = t.bus()

    @bus.on(WORK)
    async def handle(payload: str, delivery: Delivery[str]) -> None:
        seen[payload] = delivery.attempt

    async with bus:
        await bus.start()
        await t.eventually(lambda: set(seen) >= expected)
        await t.pause(2)
        await all_done(t, bus)

    assert set(seen) == expected
    if t.capabilities.delivery_count != "approximate":
        assert set(seen.values()) <= {1}


@check("H21")
async def the_deadline_cancels_and_gives_back(t: Case) -> None:
    """A handler that does not finish in time is cancelled, and its message goes back uncounted."""
    cancelled: list[str] = []
    started = asyncio.Event()
    bus = t.bus()

    @bus.on(WORK, concurrency=1)
    async def hang(payload: str) -> None:
        started.set()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(payload)
            raise

    async with bus:
        await bus.send(WORK, "x")
        await bus.start()
        await started.wait()
        before = time.monotonic()
        await bus.drain(timeout=2 * t.tick)
        took = time.monotonic() - before

    assert cancelled == ["x"]
    assert 1.9 * t.tick <= took <= 2 * t.tick + 5 * t.harness.patience
    await _leftovers(t, {"x"})


@check("H22")
async def a_bus_can_start_again(t: Case) -> None:
    """After a drain handlers can be started again, and a closed bus can be opened again."""
    seen: list[str] = []
    bus = t.bus()

    @bus.on(WORK)
    async def handle(payload: str) -> None:
        seen.append(payload)

    for opening in range(2):
        async with bus:
            for start in range(2):
                await bus.send(WORK, f"{opening}.{start}")
                await bus.start()
                await t.eventually(lambda opening=opening, start=start: f"{opening}.{start}" in seen)  # type: ignore[misc]
                await bus.drain()
    await t.raises(ClosedError, bus.send(WORK, "late"))

    t.count_handled(seen, ["0.0", "0.1", "1.0", "1.1"])


@check("H23")
async def ten_drains_at_once_are_one(t: Case) -> None:
    """Draining from ten places at once is harmless."""
    seen: list[str] = []
    bus = t.bus()

    @bus.on(WORK)
    async def handle(payload: str) -> None:
        seen.append(payload)

    async with bus:
        await bus.start()
        await bus.send(WORK, "x")
        await t.eventually(lambda: seen)
        await asyncio.gather(*(bus.drain() for _ in range(10)))

    assert seen == ["x"]


@check("H24")
async def nothing_is_left_behind(t: Case) -> None:
    """After closing there is no task, thread or open file that was not there before."""
    await t.adapter.aclose()  # while it is open, it may begin tasks of its own
    bus = t.bus()

    @bus.on(WORK, idempotent=True)
    async def handle(_: str) -> None:
        pass

    @bus.on(Queue("threaded", str))
    def in_thread(_: str) -> None:
        pass

    async def live() -> None:
        async with bus:
            await bus.start()
            await bus.send_many(WORK, ["a", "b"])
            await bus.send(Queue("threaded", str), "c")
            await all_done(t, bus)
            await all_done(t, bus, Queue("threaded", str))

    await live()  # what is made once per process (a client library's own thread, say) is there afterwards
    tasks, threads, files = asyncio.all_tasks(), set(threading.enumerate()), _open_files()
    await live()

    try:
        await t.eventually(lambda: asyncio.all_tasks() <= tasks, what="no task is left", within=3)
    except AssertionError as exc:
        raise AssertionError(f"{exc}: {asyncio.all_tasks() - tasks}") from None
    await t.eventually(lambda: set(threading.enumerate()) <= threads, what="no thread is left", within=3)
    gc.collect()
    await t.eventually(lambda: len(_open_files()) <= len(files), what="no file or socket is left open", within=3)


def _open_files() -> list[Path]:
    try:
        return list(Path("/proc/self/fd").iterdir())
    except FileNotFoundError:
        return []  # only Linux tells


@check("H25", timeout=120, duplicates=100)
async def stopping_under_load_loses_nothing(t: Case) -> None:
    """Consumers that are stopped and started under load, again and again, handle every message."""
    count = t.many(600)
    seen: list[str] = []
    publisher = t.bus()
    async with publisher:
        sending = asyncio.create_task(publisher.send_many(WORK, [str(n) for n in range(count)]))
        for turn in range(100):
            bus = t.bus()

            @bus.on(WORK, concurrency=8, retry=Retry(attempts=1))
            async def handle(payload: str) -> None:
                await asyncio.sleep(0.001)
                seen.append(payload)

            async with bus:
                await bus.start()
                await asyncio.sleep(0.03 + 0.02 * turn)
                await bus.drain(timeout=0 if turn % 2 else 5)
            if len(set(seen)) == count:
                break
        await sending
        dead = await (await publisher.dead_letters(WORK)).peek()

    t.count_handled(seen, [str(n) for n in range(count)])
    assert dead == []


@check("H26")
async def health_tells(t: Case) -> None:
    """An open bus is healthy, and says so for each broker and subscription."""
    bus = t.bus()

    @bus.on(WORK)
    async def handle(_: str) -> None:
        pass

    async with bus:
        await bus.start()
        await bus.send(WORK, "x")
        report = bus.health()

    assert report.ok
    assert [health.ok for health in report.brokers.values()] == [True]
    assert dict(report.subscriptions) == {"work": True}
