"""Where to begin to read partitions, and how a place in a topic is one number."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

from aiokafka import TopicPartition

from msgbus.adapter import Start
from msgbus_kafka._cluster import EARLIEST, LATEST, Cluster, Committed

__all__ = ["TimeOf", "begin", "from_position", "to_position"]

_SHIFT = 48
"""Partitions have 16 bits above the offset's 48: in partition 0, and so in a topic with only one, it is the offset."""

TimeOf = Callable[[TopicPartition, int], Awaitable[int | None]]
"""Returns the time in milliseconds of the first record at or after an offset, or None if there is none."""


def to_position(partition: int, offset: int) -> int:
    """Return the position of a message: its partition and offset in one number."""
    return partition << _SHIFT | offset


def from_position(position: int) -> tuple[int, int]:
    """Return partition and offset of a position."""
    return position >> _SHIFT, position & ((1 << _SHIFT) - 1)


async def begin(
    cluster: Cluster,
    partitions: Sequence[TopicPartition],
    committed: Mapping[TopicPartition, Committed],
    start: Start | None,
    chosen: Sequence[TopicPartition],
    time_of: TimeOf,
) -> dict[TopicPartition, int]:
    """Return the first offset to read of each partition.

    Args:
        cluster: Where to ask.
        partitions: Which partitions.
        committed: Where their group left off; what it never committed begins at the earliest message.
        start: Where to begin instead. A position means that message in its own partition, and in the others what is
            not older than it.
        chosen: For which partitions *start* is meant.
        time_of: Tells how old a message is.
    """
    starts = {tp: committed[tp].offset for tp in partitions if tp in committed}
    if new := [tp for tp in partitions if tp not in starts]:
        starts |= await cluster.offsets(new, EARLIEST)
    if start is None or not chosen:
        return starts
    first = await cluster.offsets(chosen, EARLIEST)
    last = await cluster.offsets(chosen, LATEST)
    if start in ("earliest", "latest"):
        return starts | (first if start == "earliest" else last)
    if isinstance(start, datetime):
        return starts | await _at_time(cluster, chosen, int(start.timestamp() * 1000), last)
    number, offset = from_position(int(start))
    exact = [tp for tp in chosen if tp.partition == number]
    others = [tp for tp in chosen if tp.partition != number]
    if others:
        time = await time_of(TopicPartition(others[0].topic, number), offset)
        starts |= {tp: last[tp] for tp in others} if time is None else await _at_time(cluster, others, time, last)
    return starts | {tp: min(max(offset, first[tp]), last[tp]) for tp in exact}


async def _at_time(
    cluster: Cluster, partitions: Sequence[TopicPartition], time: int, last: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    found = await cluster.offsets(partitions, time)
    return {tp: offset if offset >= 0 else last[tp] for tp, offset in found.items()}
