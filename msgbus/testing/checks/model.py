"""N. Whatever happens in whatever order, the adapter does what the memory model does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgbus.adapter import Address, Kind, Source
from msgbus.testing._check import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgbus.testing.case import Case


async def _drive(t: Case, sources: Sequence[Source]) -> None:
    from msgbus.testing.machine import drive  # noqa: PLC0415 - only these checks need Hypothesis

    # A thread of its own: the machine runs an event loop per example.
    await asyncio.to_thread(drive, t.harness.url, sources, examples=t.many(15))


@check("N1", needs="hook:virtual", timeout=300)
async def a_queue_behaves_like_the_model(t: Case) -> None:
    """Random publishing, settling, dying, replaying, joining, leaving and waiting on a queue: like the model."""
    await _drive(t, [Source(Address(Kind.QUEUE, t.name()))])


@check("N2", needs="hook:virtual order=key", timeout=300)
async def a_keyed_queue_behaves_like_the_model(t: Case) -> None:
    """The same on a queue with keys: like the model, each key in order and with one owner."""
    await _drive(t, [Source(Address(Kind.QUEUE, t.name(), keyed=True))])


@check("N3", needs="hook:virtual groups", timeout=300)
async def a_topic_behaves_like_the_model(t: Case) -> None:
    """The same on a topic with two groups: like the model, and no group touches the other."""
    address = Address(Kind.TOPIC, t.name("t"))
    await _drive(t, [Source(address, "one"), Source(address, "two")])
