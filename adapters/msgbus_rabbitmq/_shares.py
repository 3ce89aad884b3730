"""How the processes that consume a keyed channel share its partitions.

Each has a consumer on every partition, and the broker hands a partition's messages to the one that came first. So the
first process would have all of them. Therefore whoever has more than its share passes partitions on: it leaves, and
joins again behind the others. When a process ends, the broker goes on with the next one by itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from msgbus_rabbitmq._part import Part

__all__ = ["share_out", "surplus"]

_PERIOD = 0.5
"""Seconds between looks at who else consumes. Shorter is work for the broker; longer lets a new process idle."""


def surplus(parts: Sequence[Part], members: int) -> list[Part]:
    """Return the parts to pass on where *members* processes consume: quiet ones first."""
    active = [part for part in parts if part.active]
    excess = len(active) - -(-len(parts) // max(members, 1))
    return sorted(active, key=lambda part: not part.is_quiet)[:excess] if excess > 0 else []


async def share_out(parts: Sequence[Part], members: Callable[[], Awaitable[int]]) -> None:
    """Pass on what is beyond our share, now and then, for ever.

    Args:
        parts: The partitions.
        members: Tells how many processes consume them.
    """
    while True:
        await asyncio.sleep(random.uniform(_PERIOD / 2, _PERIOD))  # noqa: S311 - processes should not act at once
        if sum(part.active for part in parts) < 2:
            continue  # nobody's share is smaller than one
        try:
            count = await members()
        except Exception:  # noqa: BLE001, S112 - no connection now; its keeper says so, and we look again
            continue
        for part in surplus(parts, count):
            await part.pass_on()
