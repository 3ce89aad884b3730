"""Moving messages: to the dead letters, to a later time. Stored there first, only then deleted here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from msgbus.adapter import DEAD, Clock, Received, Source
from msgbus.errors import BrokerError, SettleError
from msgbus_aws._names import queue_of
from msgbus_aws._outbox import Destination, Letter, Outbox
from msgbus_aws._receipt import Receipt
from msgbus_aws._topology import Provisioner
from msgbus_aws._wire import fit, pack

__all__ = ["LONGEST_DELAY", "Moves", "delayed"]

LONGEST_DELAY = 900
"""Seconds that SQS delays a message when it is sent; what waits for longer is sent again and again until it is due."""


def delayed(delay: float, now: float) -> tuple[int, float | None]:
    """Return how many seconds SQS is to delay a message, and when it is due if that is not enough."""
    if delay <= LONGEST_DELAY:
        return math.ceil(delay), None
    return LONGEST_DELAY, now + delay


class Moves:
    """Moves messages of one source.

    Args:
        outbox: Sends.
        provisioner: Finds queues.
        clock: Tells when.
        source: Whose messages they are.
        queue: Where they are.
    """

    def __init__(
        self, outbox: Outbox, provisioner: Provisioner, clock: Clock, source: Source, queue: Destination
    ) -> None:
        self._outbox = outbox
        self._provisioner = provisioner
        self._clock = clock
        self._source = source
        self._queue = queue

    async def bury(self, graves: Sequence[tuple[Received, dict[str, str]]]) -> list[SettleError | None]:
        """Store messages as dead letters, with the headers given."""
        try:
            dead = await self._provisioner.find_queue(queue_of(self._source.dead_letters))
        except BrokerError as exc:
            return [_failed(exc) for _ in graves]
        return await self._send([self._dead_letter(dead, received, headers) for received, headers in graves])

    def _dead_letter(self, dead: Destination, received: Received, headers: dict[str, str]) -> Letter:
        receipt: Receipt = received.receipt
        # A message group each: one would show only ten letters of a key at a time. And an id that is the same if this
        # very delivery is buried again, but not when a replayed message dies again.
        delivery = fit(f"{receipt.id}:{received.deliveries}")
        return Letter(dead, pack(receipt.body, headers), delivery, delivery, moved=True)

    async def postpone(self, waiting: Sequence[tuple[Received, dict[str, str], float]]) -> list[SettleError | None]:
        """Send messages again to where they are, with the headers given, to be handled at the times given."""
        letters = []
        for received, headers, due in waiting:
            receipt: Receipt = received.receipt
            seconds, later = delayed(max(0.0, due - self._clock.now()), self._clock.now())
            parcel = pack(receipt.body, headers, due=due if later is not None else None)
            letters.append(Letter(self._queue, parcel, delay=seconds, moved=True))
        return await self._send(letters)

    async def broken(self, received: Sequence[Received]) -> list[SettleError | None]:
        """Store messages as dead letters whose bodies are lost."""
        return await self.bury([(message, {**message.headers, DEAD: _report(message)}) for message in received])

    async def _send(self, letters: list[Letter]) -> list[SettleError | None]:
        return [None if error is None else _failed(error) for error in await self._outbox.send(letters)]


def _report(received: Received) -> str:
    receipt: Receipt = received.receipt
    return json.dumps({"reason": "undecodable", "detail": receipt.broken, "source": received.channel})


def _failed(exc: Exception) -> SettleError:
    error = SettleError(f"not moved: {exc}")
    error.__cause__ = exc
    return error
