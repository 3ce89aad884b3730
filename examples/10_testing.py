"""Testing: your own bus on the memory broker in virtual time; a minute of retries takes no time."""

from __future__ import annotations

import asyncio
import time

from pydantic import BaseModel

from msgbus import Bus, Queue, Retry, Topic
from msgbus.testing import TestBus


class Order(BaseModel):
    id: str
    total: float


orders = Queue("testing.orders", Order)
placed = Topic("testing.order.placed", Order)
bus = Bus()


@bus.on(orders, retry=Retry(attempts=4, base=20, jitter=False))
async def place(order: Order) -> None:
    if order.total <= 0:
        raise ValueError("nothing to pay")
    await bus.publish(placed, order)


async def test_a_good_order_is_placed() -> None:
    async with TestBus(bus) as t:
        await bus.send(orders, Order(id="A-1", total=9.5))
        await t.drain()

        assert t.sent(placed) == [Order(id="A-1", total=9.5)]
        assert t.dead_letters(orders) == []


async def test_a_bad_order_is_dead_lettered_after_four_attempts() -> None:
    async with TestBus(bus) as t:
        await bus.send(orders, Order(id="A-2", total=0))
        await t.advance(20 + 40)
        assert t.dead_letters(orders) == []

        await t.advance(60)
        (letter,) = t.dead_letters(orders)
        assert (letter.report.reason, letter.report.attempts) == ("failed", 4)


if __name__ == "__main__":
    started = time.monotonic()
    asyncio.run(test_a_good_order_is_placed())
    asyncio.run(test_a_bad_order_is_dead_lettered_after_four_attempts())
    print(f"2 passed; 120 s of retries took {'less than 5' if time.monotonic() - started < 5 else 'too many'} seconds")
