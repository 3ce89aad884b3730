"""Which offsets of a partition are finished: the highest contiguous one to commit, and what is done above it.

Messages of one partition are handled concurrently, so they finish out of order, while Kafka stores a single offset
per partition. The tracker knows the lowest unfinished offset, which is what is committed; the finished ones above it
travel in the commit's metadata text, so that a restart (or the partition's next owner) does not repeat them. So do
the attempts of messages that wait in memory for another one.

Pure bookkeeping, no I/O.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["METADATA_LIMIT", "OffsetTracker", "Progress", "Waiting", "decode_progress", "encode_progress"]

METADATA_LIMIT = 4096
"""The broker's default ``offset.metadata.max.bytes``; a commit with more is refused."""
_PREFIX = "mb1:"
"""Marks our metadata and its version; anything else in the field is somebody else's and is ignored."""
_RUNS, _BITS, _PACKED = 1, 2, 4
_COMPACT_AT = 1024

Run = tuple[int, int]
"""Offsets from the first up to, not including, the second."""


class Waiting(NamedTuple):
    """A message that waits for another attempt.

    Attributes:
        attempts: How many were made.
        due: Not to be delivered before, in seconds since 1970.
    """

    attempts: int
    due: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known beyond the committed offset.

    Attributes:
        finished: Finished offsets above it, as ascending runs.
        waiting: Unfinished ones that had attempts already.
    """

    finished: tuple[Run, ...] = ()
    waiting: Mapping[int, Waiting] = field(default_factory=dict)


class OffsetTracker:
    """Follows one partition from the moment it is assigned.

    Args:
        start: The offset from which it is read.
        progress: What the commit at *start* said about offsets above it.
    """

    __slots__ = ("_base", "_done", "_ends", "_low", "_offsets", "_restored", "_starts", "next", "unfinished", "waiting")

    def __init__(self, start: int, progress: Progress | None = None) -> None:
        self.next = start
        self.unfinished = 0
        self.waiting: dict[int, Waiting] = dict(progress.waiting) if progress else {}
        self._restored = list(reversed(progress.finished)) if progress else []
        # Polled offsets and whether each is done, from the lowest that may still matter. An offset's index counts all
        # that were ever polled: it is its place in the lists plus _base. All below index _low are finished.
        self._offsets: list[int] = []
        self._done = bytearray()
        self._base = 0
        self._low = 0
        # Runs of finished indices above _low: first -> end and end -> first.
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}

    def receive(self, offset: int) -> bool:
        """Note a polled offset; False if it was finished before and need not be handled.

        Offsets that are skipped were removed by compaction or belong to transaction markers: nobody waits for them.
        *offset* must not be below `next`; a partition that jumped back needs a new tracker.
        """
        index = self._base + len(self._offsets)
        self._offsets.append(offset)
        self._done.append(0)
        self.next = offset + 1
        self.unfinished += 1
        restored = self._restored
        while restored and restored[-1][1] <= offset:
            restored.pop()
        if restored and restored[-1][0] <= offset:
            self._finish(index)
            return False
        return True

    @property
    def is_plain(self) -> bool:
        """Whether nothing was finished or attempted above the position, so that `receive_all` may be used."""
        return not self._restored and not self.waiting

    def receive_all(self, offsets: Sequence[int]) -> None:
        """Note polled offsets of which none can have been finished before (`is_plain`)."""
        self._offsets += offsets
        self._done += bytes(len(offsets))
        self.next = offsets[-1] + 1
        self.unfinished += len(offsets)

    def finish(self, offset: int) -> bool:
        """Mark *offset* finished; False if it is not known or was finished before. Takes O(log n)."""
        low = self._low - self._base
        if not self._starts and low < len(self._offsets) and self._offsets[low] == offset:
            # The usual case, in order: nothing is finished above.
            self._done[low] = 1
            self._low += 1
            self.unfinished -= 1
            if low >= _COMPACT_AT:
                self._compact()
            if self.waiting:
                self.waiting.pop(offset, None)
            return True
        place = bisect_left(self._offsets, offset, low)
        if place == len(self._offsets) or self._offsets[place] != offset or self._done[place]:
            return False
        self._finish(self._base + place)
        if self.waiting:
            self.waiting.pop(offset, None)
        return True

    def finish_all(self, offsets: Sequence[int]) -> None:
        """Mark several *offsets* finished."""
        low = self._low - self._base
        end = low + len(offsets)
        if self._starts or self.waiting or self._offsets[low:end] != offsets:
            for offset in offsets:
                self.finish(offset)
            return
        self._done[low:end] = b"\1" * len(offsets)  # the usual case: the lowest ones, in order
        self._low += len(offsets)
        self.unfinished -= len(offsets)
        self._compact()

    def _finish(self, index: int) -> None:
        self._done[index - self._base] = 1
        self.unfinished -= 1
        first = self._ends.pop(index, index)
        end = self._starts.pop(index + 1, index + 1)
        if first == self._low:
            self._starts.pop(first, None)
            self._ends.pop(end, None)
            self._low = end
            self._compact()
        else:
            self._starts[first] = end
            self._ends[end] = first

    def _compact(self) -> None:
        dead = self._low - self._base
        if dead >= _COMPACT_AT and dead * 2 >= len(self._offsets):
            del self._offsets[:dead]
            del self._done[:dead]
            self._base = self._low

    @property
    def position(self) -> int:
        """The offset to commit: the lowest one that is not finished."""
        place = self._low - self._base
        return self._offsets[place] if place < len(self._offsets) else self.next

    def progress(self) -> Progress:
        """Return what is finished above `position`, and what waits.

        A gap between two finished offsets counts as finished, which keeps runs long and harms nobody.
        """
        runs = [(self._offset(first), self._offset(end - 1) + 1) for first, end in sorted(self._starts.items())]
        runs += [run for run in reversed(self._restored) if run[0] >= self.next]
        if self._restored and self._restored[-1][0] < self.next < self._restored[-1][1]:
            runs.append((self.next, self._restored[-1][1]))
        return Progress(tuple(_merged(sorted(runs))), self.waiting)

    def _offset(self, index: int) -> int:
        return self._offsets[index - self._base]


def _merged(runs: Iterable[Run]) -> list[Run]:
    merged: list[Run] = []
    for first, end in runs:
        if merged and merged[-1][1] >= first:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def encode_progress(position: int, progress: Progress, limit: int = METADATA_LIMIT) -> str:
    """Return *progress* as a commit's metadata text of at most *limit* bytes; empty when there is nothing to say.

    What does not fit is left out from the highest offsets down: it would be handled again after a restart.
    """
    runs, waiting = list(progress.finished), sorted(progress.waiting.items())
    while runs or waiting:
        text = _PREFIX + base64.b64encode(_pack(position, runs, waiting)).decode()
        if len(text) <= limit:
            return text
        runs, waiting = runs[: len(runs) * 3 // 4], waiting[: len(waiting) * 3 // 4]
    return ""


def decode_progress(position: int, text: str | None) -> Progress:
    """Read a commit's metadata; empty when somebody else wrote it, or another version of ours."""
    if not text or not text.startswith(_PREFIX):
        return Progress()
    try:
        return _unpack(position, base64.b64decode(text[len(_PREFIX) :], validate=True))
    except (ValueError, IndexError, binascii.Error, zlib.error):
        return Progress()


def _pack(position: int, runs: list[Run], waiting: list[tuple[int, Waiting]]) -> bytes:
    candidates = [(_RUNS, _pack_runs(position, runs))]
    if runs and runs[-1][1] - position <= METADATA_LIMIT * 8:
        candidates.append((_BITS, _pack_bits(position, runs)))
    kind, finished = min(candidates, key=lambda candidate: len(candidate[1]))
    payload = _numbers([len(finished)]) + finished + _pack_waiting(position, waiting)
    packed = zlib.compress(payload, 9)
    return bytes([kind | _PACKED]) + packed if len(packed) < len(payload) else bytes([kind]) + payload


def _unpack(position: int, data: bytes) -> Progress:
    kind, payload = data[0], data[1:]
    if kind & _PACKED:
        payload = zlib.decompress(payload)
    if kind & ~_PACKED not in (_RUNS, _BITS):
        raise ValueError(f"unknown kind {kind}")
    size, start = _number(payload, 0)
    finished = payload[start : start + size]
    runs = _unpack_runs(position, finished) if kind & _RUNS else _unpack_bits(position, finished)
    return Progress(tuple(runs), _unpack_waiting(position, payload[start + size :]))


def _pack_runs(position: int, runs: list[Run]) -> bytes:
    numbers, last = [], position
    for first, end in runs:
        numbers += [first - last, end - first]
        last = end
    return _numbers(numbers)


def _unpack_runs(position: int, data: bytes) -> list[Run]:
    runs, place, last = [], 0, position
    while place < len(data):
        gap, place = _number(data, place)
        length, place = _number(data, place)
        first = last + gap
        last = first + length
        runs.append((first, last))
    return runs


def _pack_bits(position: int, runs: list[Run]) -> bytes:
    bits = sum(((1 << (end - first)) - 1) << (first - position) for first, end in runs)
    return bits.to_bytes((runs[-1][1] - position + 7) // 8, "little")


def _unpack_bits(position: int, data: bytes) -> list[Run]:
    runs, bits, offset = [], int.from_bytes(data, "little"), position
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        length = (~bits & (bits + 1)).bit_length() - 1
        bits >>= length
        runs.append((offset + skip, offset + skip + length))
        offset += skip + length
    return runs


def _pack_waiting(position: int, waiting: list[tuple[int, Waiting]]) -> bytes:
    if not waiting:
        return b""
    earliest = min(int(state.due * 1000) for _, state in waiting)
    numbers, last = [earliest], position
    for offset, state in waiting:
        # Rounded up: a message must not come early because of a restart.
        numbers += [offset - last, state.attempts, -int(-state.due * 1000 // 1) - earliest]
        last = offset
    return _numbers(numbers)


def _unpack_waiting(position: int, data: bytes) -> dict[int, Waiting]:
    waiting: dict[int, Waiting] = {}
    if not data:
        return waiting
    earliest, place = _number(data, 0)
    offset = position
    while place < len(data):
        step, place = _number(data, place)
        attempts, place = _number(data, place)
        wait, place = _number(data, place)
        offset += step
        waiting[offset] = Waiting(attempts, (earliest + wait) / 1000)
    return waiting


def _numbers(numbers: Iterable[int]) -> bytes:
    """Write whole numbers in as few bytes as they need, seven bits to a byte."""
    out = bytearray()
    for number in numbers:
        rest = number
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def _number(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7
