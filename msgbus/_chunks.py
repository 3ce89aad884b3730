"""Cut a stream of items into lists: what is cheap per list is dear per item."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from itertools import islice
from typing import TypeVar

__all__ = ["chunks"]

T = TypeVar("T")


async def chunks(items: Iterable[T] | AsyncIterable[T], size: int) -> AsyncIterator[list[T]]:
    """Yield the items in lists of *size*, the last one shorter.

    The event loop gets a turn after each list. An asynchronous iterable's items wait until *size* of them are there.
    """
    if isinstance(items, AsyncIterable):
        chunk: list[T] = []
        async for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
    else:
        iterator = iter(items)
        while chunk := list(islice(iterator, size)):
            yield chunk
            await asyncio.sleep(0)
