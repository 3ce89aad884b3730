"""Lanes: messages of one key are handled in order and one at a time, different keys concurrently.

Pure bookkeeping, no I/O. A lane exists while one of its key's messages runs or is being given back. While a lane is
*closing* (its running message was nacked, so it and all behind it go back to the broker) what still arrives of the
key was handed out before the broker knew; it is held and given back too, so that order survives.
"""

from __future__ import annotations

from collections import deque

from msgbus._message import KEY
from msgbus.adapter import DeadLetter, Nack, Outcome, Received

__all__ = ["Lanes", "closes_lane", "key_of"]


class _Lane:
    __slots__ = ("returning", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Received] = deque()
        self.returning = 0


class Lanes:
    """The lanes of one subscription."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def admit(self, key: str, received: Received) -> bool:
        """Take in a message; True if it may start now, False if it waits in its lane."""
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = _Lane()
            return True
        lane.waiting.append(received)
        return False

    def done(self, key: str) -> Received | None:
        """End the running message of *key*; return the next one to start, or None and the lane is gone."""
        lane = self._lanes[key]
        if lane.waiting:
            return lane.waiting.popleft()
        del self._lanes[key]
        return None

    def leave(self, key: str, received: Received) -> list[Received]:
        """Take a message out that waits in its lane, and all behind it; return them, none if it does not wait there."""
        lane = self._lanes.get(key)
        if lane is None or received not in lane.waiting:
            return []
        left = list(lane.waiting)[lane.waiting.index(received) :]
        for _ in left:
            lane.waiting.pop()
        return left

    def close(self, key: str) -> list[Received]:
        """Begin to give the running message of *key* back; return the others that go back behind it."""
        lane = self._lanes[key]
        behind = list(lane.waiting)
        lane.waiting.clear()
        lane.returning = 1 + len(behind)
        return behind

    def returned(self, key: str) -> list[Received]:
        """Note that one message of a closing lane is back; return what arrived meanwhile and goes back now."""
        lane = self._lanes[key]
        lane.returning -= 1
        if lane.returning:
            return []
        behind = list(lane.waiting)
        lane.waiting.clear()
        lane.returning = len(behind)
        if not behind:
            del self._lanes[key]
        return behind

    def is_closing(self, key: str) -> bool:
        """Tell whether the key's lane is being given back."""
        lane = self._lanes.get(key)
        return lane is not None and lane.returning > 0

    def clear(self) -> list[Received]:
        """Forget what waits in all lanes (at shutdown, when everything goes back), and return it."""
        waiting = [received for lane in self._lanes.values() for received in lane.waiting]
        for lane in self._lanes.values():
            lane.waiting.clear()
        return waiting

    def __len__(self) -> int:
        return len(self._lanes)


def key_of(received: Received) -> str | None:
    """Return the key of a message: the broker's, or the one in its headers."""
    return received.key if received.key is not None else received.headers.get(KEY)


def closes_lane(outcome: Outcome) -> bool:
    """Tell whether what waits behind a message goes back with it."""
    return type(outcome) is Nack or (type(outcome) is DeadLetter and outcome.park)
