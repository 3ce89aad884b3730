"""One partition while it is assigned to a subscription."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from msgbus_kafka._cluster import Committed
from msgbus_kafka._offsets import METADATA_LIMIT, OffsetTracker, decode_progress, encode_progress

if TYPE_CHECKING:
    from msgbus_kafka._inbox import Entry

__all__ = ["Partition"]

_WINDOW = 4096
_WINDOW_BYTES = 16 * 1024 * 1024
"""How much of a partition may wait in memory, for a delay or behind its key, before it is not read further. Within
the window everything comes when it is due; what lies beyond may be late."""


class Partition:
    """What is known of an assigned partition: its progress, and how much of it is where.

    Args:
        tp: Topic and partition.
        start: The offset from which it is read.
        committed: What the group had committed for it.
    """

    __slots__ = ("_waiting", "_waiting_bytes", "committed", "dirty", "in_flight", "live", "sent", "tp", "tracker")

    def __init__(self, tp: TopicPartition, start: int, committed: Committed | None) -> None:
        self.tp = tp
        known = committed is not None and committed.offset == start
        progress = decode_progress(start, committed.metadata) if committed and known else None
        self.tracker = OffsetTracker(start, progress)
        self.committed = committed
        self.sent: Committed | None = None
        # A start that nobody committed yet is committed at once: whoever takes over must not start elsewhere.
        self.dirty = not known
        self.live = True
        self.in_flight = 0
        self._waiting = 0
        self._waiting_bytes = 0

    def was_confirmed(self) -> None:
        """Note that the broker took what was to be committed."""
        self.committed = self.sent

    def to_commit(self, limit: int = METADATA_LIMIT) -> Committed:
        """Return what to commit now."""
        position = self.tracker.position
        self.sent = Committed(position, encode_progress(position, self.tracker.progress(), limit))
        self.dirty = False
        return self.sent

    def was_committed(self, found: Committed | None) -> bool:
        """Tell whether *found* is our own last commit, so that nobody else had the partition meanwhile."""
        return found == self.committed or (found is not None and found == self.sent)

    def waits(self, entry: Entry) -> None:
        """Note that *entry* waits in memory."""
        self._waiting += 1
        self._waiting_bytes += len(entry.body)

    def woke(self, entry: Entry) -> None:
        """Note that *entry* does not wait any more."""
        self._waiting -= 1
        self._waiting_bytes -= len(entry.body)

    @property
    def full(self) -> bool:
        """Whether so much waits that no more should be read."""
        return self._waiting >= _WINDOW or self._waiting_bytes >= _WINDOW_BYTES

    @property
    def relaxed(self) -> bool:
        """Whether so little waits that reading may go on."""
        return self._waiting <= _WINDOW // 2 and self._waiting_bytes <= _WINDOW_BYTES // 2
