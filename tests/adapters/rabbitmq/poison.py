"""A worker that a poisonous message kills, started again each time: ``python poison.py URL``; prints how often.

Each worker is a fork, so that a death costs a tenth of a second. Ends when one lives to handle the message behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from msgbus import Bus, Queue, Retry

JOBS = Queue("poison-jobs", str)
ATTEMPTS = 1


async def work(url: str) -> None:
    """Handle messages until a good one is done."""
    done = asyncio.Event()
    bus = make_bus(url, done, "skip")
    async with bus:
        await bus.start()
        await done.wait()


def make_bus(url: str, done: asyncio.Event, topology: str) -> Bus:
    """Return a bus whose handler dies of poison."""
    bus = Bus(url, prefetch=1, topology=topology)

    @bus.on(JOBS, concurrency=1, retry=Retry(attempts=ATTEMPTS))
    async def handle(text: str) -> None:
        if text == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        done.set()

    return bus


async def declare(url: str) -> None:
    """Declare once what the workers use."""
    async with make_bus(url, asyncio.Event(), "create"):
        pass


def main(url: str) -> None:
    """Fork workers until one ends well."""
    asyncio.run(declare(url))
    deaths = 0
    while True:
        child = os.fork()
        if not child:
            asyncio.run(work(url))
            return
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(deaths)
            sys.exit(os.waitstatus_to_exitcode(status))
        deaths += 1


if __name__ == "__main__":
    main(sys.argv[1])
