"""Hello: send a message to a queue and handle it.

Every example runs on its own (``python examples/01_hello.py``), on the embedded SQLite broker in ``msgbus.db`` or on
the broker that ``MSGBUS_URL`` names.
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from msgbus import Bus, Queue


class Greeting(BaseModel):
    name: str


greetings = Queue("hello.greetings", Greeting)  # a channel: a name and a payload type
bus = Bus()
handled = asyncio.Event()


@bus.on(greetings)
async def greet(greeting: Greeting) -> None:
    print(f"Hello, {greeting.name}!")
    handled.set()


async def main() -> None:
    async with bus:  # connects; starts no handler
        await bus.send(greetings, Greeting(name="Ada"))  # returns when the broker has confirmed the message
        print("sent")
        await bus.start()  # starts the handlers; a service calls bus.run() instead
        await handled.wait()


if __name__ == "__main__":
    asyncio.run(main())
