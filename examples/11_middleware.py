"""Middleware: code around every publish and around every handler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from time import perf_counter
from typing import Any

from msgbus import Bus, Delivery, Message, Queue

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


async def send_tenant(message: Message, call_next: Callable[[Message], Awaitable[None]]) -> None:
    """Put the tenant that this code works for on each message."""
    await call_next(replace(message, headers={**message.headers, "tenant": tenant.get()}))


async def take_tenant(delivery: Delivery[Any], call_next: Callable[[Delivery[Any]], Awaitable[Any]]) -> Any:
    """Let the handler work for the message's tenant."""
    token = tenant.set(delivery.message.headers.get("tenant", "nobody"))
    try:
        return await call_next(delivery)
    finally:
        tenant.reset(token)


async def watch(delivery: Delivery[Any], call_next: Callable[[Delivery[Any]], Awaitable[Any]]) -> Any:
    """Tell how long the handler took."""
    started = perf_counter()
    try:
        return await call_next(delivery)
    finally:
        print(f"{delivery.channel}: {'quick' if perf_counter() - started < 1 else 'slow'}")


bus = Bus(publish_middleware=[send_tenant], consume_middleware=[watch, take_tenant])  # the first is outermost
jobs: Queue[dict[str, Any]] = Queue("middleware.jobs")  # without a type, payloads are plain dicts
handled = asyncio.Event()


@bus.on(jobs)
async def work(job: dict[str, Any]) -> None:
    print(f"{job['what']} for {tenant.get()}")
    handled.set()


async def main() -> None:
    async with bus:
        await bus.start()
        tenant.set("acme")
        await bus.send(jobs, {"what": "paint the fence"})
        await handled.wait()


if __name__ == "__main__":
    asyncio.run(main())
