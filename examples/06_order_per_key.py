"""Order: messages of one key are handled in order, one at a time; different keys run at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from msgbus import Bus, Delivery, Queue, Retry


@dataclass
class Movement:  # payloads may be dataclasses
    account: str
    number: int


movements = Queue("order.movements", Movement, key="account")
bus = Bus()
seen: dict[str, list[int]] = defaultdict(list)
running = most = 0
all_done = asyncio.Event()


@bus.on(movements, concurrency=8, retry=Retry(base=0.1))
async def book(movement: Movement, delivery: Delivery[Movement]) -> None:
    global running, most  # noqa: PLW0603 - counted for the printout
    if (movement.account, movement.number, delivery.attempt) == ("bob", 2, 1):
        raise ConnectionError("a failure; bob's next movements wait for the retry, the others' do not")
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.01)
    running -= 1
    seen[movement.account].append(movement.number)
    if sum(map(len, seen.values())) == 40:
        all_done.set()


async def main() -> None:
    async with bus:
        await bus.send_many(movements, [Movement(who, n) for n in range(10) for who in ("ada", "bob", "cy", "dee")])
        await bus.start()
        await all_done.wait()
    for account, numbers in sorted(seen.items()):
        print(account, numbers)
    print("at most", most, "handlers ran at once")


if __name__ == "__main__":
    asyncio.run(main())
