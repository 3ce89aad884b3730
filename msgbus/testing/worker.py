"""A consumer in a process of its own, for checks that kill, stop and resume one: ``python -m msgbus.testing.worker``.

What it is to do comes as JSON in ``MSGBUS_TEST_WORKER``; what it does it prints, a line per event.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

from msgbus import Bus, Delivery, Queue, Retry

__all__ = ["WORK", "main"]

WORK = Queue("work", str)


def _say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - this is how the check sees what happens


async def _behave(behaviour: str, payload: str) -> None:
    if behaviour == "hang":
        await asyncio.sleep(3600)
    elif behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        await asyncio.sleep(0.005)
        _say("done", payload)


async def _consume(orders: dict[str, Any]) -> None:
    bus = Bus(**orders["bus"])
    retry = Retry(attempts=orders["attempts"], base=0.05)

    @bus.on(WORK, concurrency=orders["concurrency"], retry=retry)
    async def handle(payload: str, delivery: Delivery[str]) -> None:
        _say("began", payload, delivery.attempt)
        try:
            await _behave(orders["behaviour"], payload)
        except asyncio.CancelledError:
            _say("cancelled", payload)
            raise

    async with bus:
        await bus.start()
        _say("ready")
        await bus.wait()


def main() -> None:
    """Consume until killed."""
    asyncio.run(_consume(json.loads(os.environ["MSGBUS_TEST_WORKER"])))


if __name__ == "__main__":
    main()
