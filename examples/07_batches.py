"""Batches: one call for many messages, and an outcome for each of them."""

from __future__ import annotations

import asyncio

from typing_extensions import TypedDict  # typing.TypedDict from Python 3.12 on

from msgbus import BatchFailed, Bus, Queue, Reject, Retry


class Reading(TypedDict):  # payloads may be TypedDicts
    sensor: str
    celsius: float


readings = Queue("batches.readings", Reading)
bus = Bus()
stored: list[Reading] = []
all_done = asyncio.Event()


@bus.on(readings, batch=100, batch_wait=0.1, retry=Retry(attempts=2, base=0.05))
async def store(batch: list[Reading]) -> None:
    bad = {n: Reject("no thermometer shows that") for n, reading in enumerate(batch) if reading["celsius"] < -273.15}
    good = [reading for n, reading in enumerate(batch) if n not in bad]
    stored.extend(good)  # a single INSERT, say
    print(f"a batch of {len(batch)}: {len(good)} stored, {len(bad)} refused")
    if len(stored) == 249:
        all_done.set()
    if bad:
        raise BatchFailed(bad)  # these only; the others are done


async def main() -> None:
    async with bus:
        payloads: list[Reading] = [{"sensor": f"s-{n % 5}", "celsius": 20.0 + n % 7} for n in range(250)]
        payloads[70]["celsius"] = -500.0
        await bus.send_many(readings, payloads)
        await bus.start()
        await all_done.wait()
        await bus.drain()
        box = await bus.dead_letters(readings)
        for letter in await box.peek():
            print("dead:", letter.message.body.decode(), letter.report.reason, letter.report.detail)
        await box.drop()


if __name__ == "__main__":
    asyncio.run(main())
