"""Idempotency: what arrives twice is handled once."""

from __future__ import annotations

import asyncio
import secrets

from pydantic import BaseModel

from msgbus import Bus, Idempotency, Queue


class Charge(BaseModel):
    order: str
    amount: float


by_id = Queue("idempotency.by-id", Charge)
by_order = Queue("idempotency.by-order", Charge)
bus = Bus()
outages = ["the bank does not answer"]
run = secrets.token_hex(2)  # keys are remembered for a day; another run of this example shall not meet this one's


# One at a time, for a short printout: a duplicate that comes while the first is handled asks again seconds later.
@bus.on(by_id, concurrency=1, idempotent=True)  # the message id tells: redeliveries, and messages published again
async def charge(order: Charge) -> None:
    print("charged for the message of", order.order.partition("/")[0])


@bus.on(by_order, concurrency=1, idempotent=Idempotency(key="order", ttl=3600))  # the order's number tells
async def charge_order(order: Charge) -> None:
    if outages:
        raise ConnectionError(outages.pop())  # it failed, so it is not marked as handled
    print("charged for", order.order.partition("/")[0])


async def all_handled() -> bool:
    stats = [await bus.stats(queue) for queue in (by_id, by_order)]
    return not any(one.ready or one.in_flight or one.delayed for one in stats)


async def main() -> None:
    async with bus:
        for _ in range(3):  # the same message id each time
            await bus.send(by_id, Charge(order=f"A-1/{run}", amount=10), id=f"charge-A-1/{run}")
        await bus.send_many(by_order, [Charge(order=f"B-1/{run}", amount=10)] * 3)  # three ids, one order
        await bus.start()
        while not await all_handled():
            await asyncio.sleep(0.05)
        print("both queues are empty: 6 messages, each order charged once")


if __name__ == "__main__":
    asyncio.run(main())
