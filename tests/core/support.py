"""What the core's tests share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel

R = TypeVar("R")


class Order(BaseModel):
    """The payload of most tests."""

    id: str
    customer: str = "ann"
    total: float = 1.0


def run(coroutine: Coroutine[Any, Any, R], *, within: float = 20.0) -> R:
    """Run a test's coroutine; fail it after *within* seconds."""

    async def bounded() -> R:
        async with asyncio.timeout(within):
            return await coroutine

    return asyncio.run(bounded())


async def eventually(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]], *, within: float = 10.0, why: str = "the condition"
) -> Any:
    """Return *condition*'s value once it is true; fail after *within* seconds."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"{why} did not come true within {within:g} s"
        await asyncio.sleep(0.005)
