"""Publishing and consuming as the core does it: again and again until it is done."""

from __future__ import annotations

import asyncio

from msgbus.adapter import Ack
from msgbus.errors import BrokerUnavailable, LeaseLost


async def publish_all(kit, adapter, messages, size=50):
    """Publish as the core does: what may be tried again is, with the same ids."""
    for start in range(0, len(messages), size):
        left = messages[start : start + size]
        while left:
            try:
                results = await adapter.publish(left)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
                continue
            assert all(error is None or error.retryable for error in results), results
            left = [m for m, error in zip(left, results, strict=True) if error is not None]
            if left:
                await asyncio.sleep(0.05)


async def consume_all(kit, subscription, expected):
    """Consume as the core does, until all of *expected* has been acked; return how often each was."""
    seen = {}
    while not set(seen) >= set(expected):
        try:
            got = await subscription.receive(50, 1)
        except BrokerUnavailable:
            await asyncio.sleep(0.05)
            continue
        unsettled, tried = list(got), set()
        while unsettled:
            results = await subscription.settle([Ack(m) for m in unsettled])
            for message, error in zip(unsettled, results, strict=True):
                # An ack that was cut off may have arrived: the message never comes again then.
                if error is None or (isinstance(error, LeaseLost) and message.position in tried):
                    seen[message.body.decode()] = seen.get(message.body.decode(), 0) + 1
            tried.update(message.position for message in unsettled)
            unsettled = [
                m for m, e in zip(unsettled, results, strict=True) if e is not None and not isinstance(e, LeaseLost)
            ]
            if unsettled:
                await asyncio.sleep(0.05)
    return seen
