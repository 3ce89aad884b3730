"""C, D. What was confirmed, acked or delayed survives the broker's restart and kill; publishers and consumers go on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from msgbus import Queue
from msgbus.testing._check import check
from msgbus.testing.checks.round_trip import complete, numbered
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from msgbus.testing.case import Case

WORK = Queue("work", str)


@check("C20", needs="durable hook:restart", timeout=120)
async def confirmed_survives_a_restart(t: Case) -> None:
    """What was confirmed is there after the broker's restart, whole; what was acked is not."""
    source = await t.queue()
    await t.send(source.address, *numbered(20), headers={"h": "v"})
    tap = await t.tap(source)
    acked = await tap.take(5)
    await tap.ack(*acked)
    await tap.aclose()
    await t.harness.restart()
    after = await t.tap(source, on=await t.open())
    received = await after.drain(15, within=60)

    complete([*acked, *received], numbered(20))
    assert all(m.headers["h"] == "v" for m in received)
    await after.expect_nothing()


@check("C21", needs="durable hook:kill", timeout=120)
async def confirmed_survives_a_kill(t: Case) -> None:
    """What was confirmed is there after the broker's process was killed."""
    source = await t.queue()
    await t.send(source.address, *numbered(100))
    await t.harness.kill()
    after = await t.tap(source, on=await t.open())

    complete(await after.drain(100, within=60), numbered(100))


@check("C22", needs="durable max_delay hook:restart", timeout=120)
async def a_delay_survives_a_restart(t: Case) -> None:
    """A delayed message survives the broker's restart and is still not early."""
    source = await t.queue()
    delay = max(3.0, 5 * t.tick)
    before = time.time()
    await t.send(source.address, b"later", delay=delay)
    await t.harness.restart()
    tap = await t.tap(source, on=await t.open())
    received = await tap.drain(1, within=60)

    assert bodies(received) == [b"later"]
    assert time.time() - before >= delay


@check("C23", needs="durable hook:restart", timeout=180, duplicates=1_000)
async def a_running_bus_survives_a_restart(t: Case) -> None:
    """A restart under load is survived by publishers and consumers without help; all that was confirmed is handled."""
    seen: list[str] = []
    confirmed: list[str] = []
    each = t.many(50)
    bus = t.bus(publish_timeout=60, lease=5 * t.lease)  # what is on its way when the broker ends comes again then

    @bus.on(WORK, concurrency=8)
    async def handle(payload: str) -> None:
        seen.append(payload)

    async def publish(worker: int) -> None:
        for number in range(each):
            payload = f"{worker}.{number}"
            await bus.send(WORK, payload)
            confirmed.append(payload)

    async with bus:
        await bus.start()
        async with asyncio.TaskGroup() as group:
            for worker in range(10):
                group.create_task(publish(worker))
            await t.eventually(lambda: len(confirmed) > 2 * each)
            await t.harness.restart()
        await t.eventually(lambda: set(seen) >= set(confirmed), within=90)
        await t.eventually(lambda: bus.health().ok, within=30)

    t.count_handled(seen, confirmed)
