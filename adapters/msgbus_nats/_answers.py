"""Telling the server what became of messages, and storing dead letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from nats import errors

from msgbus.adapter import Ack, Clock, DeadLetter, Nack, Outcome, Source
from msgbus.errors import BrokerError, BrokerUnavailable, SettleError
from msgbus_nats._client import frame
from msgbus_nats._confirms import Confirms, Job, Mode
from msgbus_nats._headers import MESSAGE_ID, carried, encode_headers
from msgbus_nats._link import Link
from msgbus_nats._names import Names
from msgbus_nats._topology import Provisioner, nanoseconds

__all__ = ["ACK", "NAK", "PROGRESS", "Answers", "NotWritten", "Tools", "answer_to"]

ACK = b"+ACK"
NAK = b"-NAK"
PROGRESS = b"+WPI"


@dataclass(frozen=True, slots=True)
class Tools:
    """What all subscriptions of an adapter use."""

    link: Link
    names: Names
    provisioner: Provisioner
    confirms: Confirms
    clock: Clock
    double_ack: bool


class NotWritten(SettleError):
    """The answer certainly did not reach the server."""


def answer_to(outcome: Outcome) -> bytes:
    """Return the server's word for an outcome."""
    if type(outcome) is Ack:
        return ACK
    assert isinstance(outcome, Nack)
    if not outcome.delay:
        return NAK
    return NAK + b" " + json.dumps({"delay": nanoseconds(outcome.delay)}).encode()


class Answers:
    """Answers the server about the messages of one source.

    Args:
        tools: The adapter's.
        source: The source.
    """

    def __init__(self, tools: Tools, source: Source) -> None:
        self._tools = tools
        self._source = source

    async def send(self, answers: Sequence[tuple[str, bytes]]) -> list[SettleError | None]:
        """Send answers, each to its message's reply subject; return once the server has them."""
        if self._tools.double_ack:
            return await self._send_twice(answers)
        written = False
        try:
            self._tools.link.use().write(*[frame(reply, payload) for reply, payload in answers])
            written = True
            await self._tools.link.sync()
        except (BrokerError, errors.Error) as exc:
            text = f"the connection was lost before the server had the answer: {exc}"
            error = SettleError(text) if written else NotWritten(text)
            error.__cause__ = exc
            return [error] * len(answers)
        return [None] * len(answers)

    async def _send_twice(self, answers: Sequence[tuple[str, bytes]]) -> list[SettleError | None]:
        jobs = [Job(reply, payload, b"", Mode.PROCESSED) for reply, payload in answers]
        try:
            outcome = await self._tools.confirms.publish(jobs)
        except BrokerUnavailable as exc:
            return [NotWritten(str(exc))] * len(answers)
        return [None if error is None else SettleError(str(error)) for error in outcome]

    async def bury(self, graves: Sequence[DeadLetter]) -> list[SettleError | None]:
        """Store dead letters; return what prevented each."""
        jobs = []
        for grave in graves:
            subject = self._tools.names.dead_subject(self._source, grave.received.channel)
            receipt = grave.received.receipt
            # One dead letter for each time the message was stored, however often this is tried.
            instructions = {} if receipt is None else {MESSAGE_ID: f"{subject}:{receipt.seq}:{receipt.time}"}
            jobs.append(
                Job(subject, grave.received.body, encode_headers(carried(grave.headers), instructions), Mode.STORED)
            )
        try:
            results = await self._tools.confirms.publish(jobs)
        except BrokerUnavailable as exc:
            return [_because(exc)] * len(graves)
        return [None if error is None else _because(error) for error in results]


def _because(exc: Exception) -> SettleError:
    error = SettleError(f"the dead letter was not stored: {exc}")
    error.__cause__ = exc
    return error
