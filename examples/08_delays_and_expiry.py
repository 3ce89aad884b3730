"""Time: a message that is delivered later, one that asks for its retry time, and one that comes too late."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from msgbus import Bus, Delivery, Queue, RetryAfter

reminders = Queue("time.reminders", str)  # payloads may be plain text
bus = Bus()
all_done = asyncio.Event()


@bus.on(reminders)
async def remind(text: str, delivery: Delivery[str]) -> None:
    assert delivery.message.time is not None
    age = (datetime.now(UTC) - delivery.message.time).total_seconds()
    print(f"{text!r}, attempt {delivery.attempt}: {age:.1f} s after it was sent")
    if text == "busy" and delivery.attempt == 1:
        raise RetryAfter(0.3, "the other side said: try again in 0.3 s")
    if text == "later":
        all_done.set()


async def main() -> None:
    async with bus:
        await bus.send(reminders, "too late", expires=0.1)
        await bus.send(reminders, "later", delay=0.8)
        await bus.send(reminders, "busy")
        await asyncio.sleep(0.2)  # nobody is consuming yet, and the first one expires
        await bus.start()
        await all_done.wait()
        await bus.drain()
        box = await bus.dead_letters(reminders)
        for letter in await box.peek():
            print("dead:", letter.message.body.decode(), letter.report.reason)
        await box.drop()


if __name__ == "__main__":
    asyncio.run(main())
