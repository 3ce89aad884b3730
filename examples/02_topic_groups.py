"""Topics: every group gets each message; the members of a group share them."""

from __future__ import annotations

import asyncio
from collections import Counter

from pydantic import BaseModel

from msgbus import Bus, Topic


class OrderPlaced(BaseModel):
    id: str


placed = Topic("groups.order.placed", OrderPlaced)
handled: Counter[str] = Counter()
all_done = asyncio.Event()


def count(who: str) -> None:
    handled[who] += 1
    if handled.total() == 40:
        all_done.set()


def make_bus(name: str) -> Bus:
    """Return one process's bus; normally each runs in a process of its own."""
    bus = Bus(service=name)

    # Two messages at most for this process, so that the other one gets some.
    @bus.on(placed, group="email", concurrency=2, prefetch=2)
    async def mail(order: OrderPlaced) -> None:
        await asyncio.sleep(0.01)
        count(f"email, handled by {name}")

    @bus.on(placed, group="inventory", concurrency=2, prefetch=2)
    async def reserve(order: OrderPlaced) -> None:
        await asyncio.sleep(0.01)
        count(f"inventory, handled by {name}")

    return bus


async def main() -> None:
    async with make_bus("worker-1") as one, make_bus("worker-2") as two:
        await one.start()
        await two.start()
        await one.publish_many(placed, [OrderPlaced(id=f"A-{n}") for n in range(20)])
        await all_done.wait()
    for who, times in sorted(handled.items()):
        print(f"{who}: {times}")
    for group in ("email", "inventory"):
        print(f"group {group} got", sum(times for who, times in handled.items() if who.startswith(group)), "of 20")


if __name__ == "__main__":
    asyncio.run(main())
