"""Where to begin to read partitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from aiokafka import TopicPartition

from msgbus.adapter import Start
from msgbus_kafka._cluster import EARLIEST, LATEST, Cluster, Committed

__all__ = ["begin"]


async def begin(
    cluster: Cluster,
    partitions: Sequence[TopicPartition],
    committed: Mapping[TopicPartition, Committed],
    start: Start | None,
    chosen: Sequence[TopicPartition],
) -> dict[TopicPartition, int]:
    """Return the first offset to read of each partition.

    Args:
        cluster: Where to ask.
        partitions: Which partitions.
        committed: Where their group left off; what it never committed begins at the earliest message.
        start: Where to begin instead.
        chosen: For which partitions *start* is meant.
    """
    starts = {tp: committed[tp].offset for tp in partitions if tp in committed}
    if new := [tp for tp in partitions if tp not in starts]:
        starts |= await cluster.offsets(new, EARLIEST)
    if start is not None and chosen:
        starts |= await _at(cluster, chosen, start)
    return starts


async def _at(cluster: Cluster, partitions: Sequence[TopicPartition], start: Start) -> dict[TopicPartition, int]:
    first = await cluster.offsets(partitions, EARLIEST)
    if start == "earliest":
        return first
    last = await cluster.offsets(partitions, LATEST)
    if start == "latest":
        return last
    if isinstance(start, datetime):
        found = await cluster.offsets(partitions, int(start.timestamp() * 1000))
        return {tp: offset if offset >= 0 else last[tp] for tp, offset in found.items()}
    return {tp: min(max(int(start), first[tp]), last[tp]) for tp in partitions}
