"""Types: several types on one channel, and messages from programs that know nothing of msgbus."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from msgbus import Bus, Message, Queue, Topic


class Placed(BaseModel):
    id: str
    total: float


class Cancelled(BaseModel):
    id: str
    reason: str


events = Topic("types.order", Placed | Cancelled)  # the handler is chosen by the message's type (ce-type)
invoices = Queue("types.invoices", Placed)
from_the_mainframe = Queue("types.invoices", bytes)  # the same queue as a stranger sees it: bytes
bus = Bus()
results: asyncio.Queue[str] = asyncio.Queue()


@bus.on(events, group="ledger")
async def on_placed(order: Placed) -> None:
    results.put_nowait(f"placed: {order.id}, {order.total:.2f}")


@bus.on(events, group="ledger")
async def on_cancelled(order: Cancelled) -> None:
    results.put_nowait(f"cancelled: {order.id}, {order.reason}")


@bus.on(invoices)
async def on_invoice(order: Placed, message: Message) -> None:
    results.put_nowait(f"invoice for {order.id}; content type {message.content_type}")


async def main() -> None:
    async with bus:
        await bus.start()
        await bus.publish(events, Placed(id="A-1", total=12))
        await bus.publish(events, Cancelled(id="A-1", reason="changed my mind"))
        await bus.send(from_the_mainframe, b'{"id": "B-7", "total": 3.5, "clerk": "x"}')
        for line in sorted([await results.get() for _ in range(3)]):
            print(line)
        await bus.send(from_the_mainframe, b"no JSON at all")  # fits no type: a dead letter at once
        while not (await bus.stats(invoices)).dead:
            await asyncio.sleep(0.02)
        box = await bus.dead_letters(invoices)
        print("dead:", (await box.peek())[0].report.detail)
        await box.drop()


if __name__ == "__main__":
    asyncio.run(main())
