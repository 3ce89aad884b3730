"""What becomes of a message whose handling failed: another attempt, or its subscription's dead letters."""

from __future__ import annotations

import json
import platform
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from msgbus._backoff import Retry
from msgbus._message import ATTEMPTS, DEAD, TIME, format_time
from msgbus._time import Clock
from msgbus._url import scrub
from msgbus.adapter import DeadLetter, Nack, Received, Source
from msgbus.errors import DecodeError, PayloadMismatch, Reject, RetryAfter

__all__ = ["DeadReason", "Expired", "Failures", "Report", "UnknownType", "attempt_of", "read_report"]

_DETAIL = 1_000
_TRACEBACK = 4_000
"""The most characters of a traceback in a dead letter: its end, where the cause is. Headers must stay small."""


class DeadReason(StrEnum):
    """Why a message is a dead letter."""

    FAILED = "failed"
    """All attempts were used up."""
    FATAL = "fatal"
    """The handler raised an exception that its retry policy calls fatal."""
    REJECTED = "rejected"
    """The handler raised `Reject`."""
    UNDECODABLE = "undecodable"
    """The body does not fit the channel's payload type."""
    UNKNOWN_TYPE = "unknown-type"
    """No handler takes the message's type."""
    EXPIRED = "expired"
    """It was not handled before it expired."""
    CRASHED = "crashed"
    """It was handed out more often than its policy allows, and never settled: its consumers died."""
    MISMATCH = "mismatch"
    """Its idempotency key was used before with another payload."""


class Expired(Exception):
    """The message's time is over."""


class UnknownType(DecodeError):
    """No handler takes the message's type."""


class Crashed(Exception):
    """The message's consumers died."""


@dataclass(frozen=True, slots=True)
class Report:
    """Why and where a message was dead-lettered; the ``msgbus-dead`` header holds it as JSON.

    Attributes:
        reason: See `DeadReason`.
        detail: The exception's text, or the reason given to `Reject`.
        exception: The exception's class, or empty.
        traceback: The end of its traceback, or empty.
        attempts: How many attempts were made.
        first: When the message was published (RFC 3339), or empty where nobody said.
        last: When its last attempt ended (RFC 3339).
        source: The channel's name.
        group: The consumer group; empty on queues.
        host: The machine.
    """

    reason: str
    detail: str = ""
    exception: str = ""
    traceback: str = ""
    attempts: int = 0
    first: str = ""
    last: str = ""
    source: str = ""
    group: str = ""
    host: str = ""


def read_report(headers: Mapping[str, str]) -> Report:
    """Read the report of a dead letter; what somebody else dead-lettered has an empty one."""
    try:
        data: dict[str, Any] = dict(json.loads(headers.get(DEAD, "{}")))
    except (ValueError, TypeError, RecursionError):
        data = {}
    kinds = {f.name: type(f.default) for f in fields(Report)} | {"reason": str}
    known = {name: data[name] for name, kind in kinds.items() if type(data.get(name)) is kind}
    return Report(**{"reason": "unknown", **known})


def attempt_of(received: Received) -> int:
    """Return which attempt this delivery is: those made before this copy was published, and the broker's count."""
    before = received.headers.get(ATTEMPTS)
    count = max(1, received.deliveries)
    return count + int(before) if before is not None and before.isdecimal() and len(before) < 10 else count


class Failures:
    """Decides for one subscription.

    Args:
        source: The subscription's source.
        name: Its channel's name without the namespace.
        retry: Its policy.
        park: Whether a dead letter holds back the later messages of its key.
        clock: Tells when.
    """

    def __init__(self, source: Source, name: str, retry: Retry, *, park: bool, clock: Clock) -> None:
        self._source = source
        self._name = name
        self._retry = retry
        self._park = park
        self._clock = clock
        self._host = platform.node()

    def decide(self, received: Received, error: BaseException, attempt: int) -> Nack | DeadLetter:
        """Return another attempt, or the dead letter."""
        if isinstance(error, Reject):
            return self.dead_letter(received, error, attempt, DeadReason.REJECTED)
        if isinstance(error, self._retry.fatal):
            return self.dead_letter(received, error, attempt, DeadReason.FATAL)
        if attempt >= self._retry.attempts:
            return self.dead_letter(received, error, attempt, DeadReason.FAILED)
        delay = error.delay if isinstance(error, RetryAfter) else self._retry.delay(attempt)
        return Nack(received, delay, headers=self.retry_headers(received))

    @staticmethod
    def retry_headers(received: Received) -> dict[str, str]:
        """Return the headers of a copy that is published for another attempt."""
        return {**received.headers, ATTEMPTS: str(attempt_of(received))}

    def dead_letter(
        self, received: Received, error: BaseException, attempt: int, reason: DeadReason | None = None
    ) -> DeadLetter:
        """Return the outcome that moves *received* to the dead letters with its reason."""
        exception = "" if isinstance(error, Reject | Expired | Crashed) else _class_name(error)
        report = Report(
            reason=reason or _reason(error),
            detail=scrub(str(error))[:_DETAIL],
            exception=exception,
            traceback=_trim(error) if exception and error.__traceback__ else "",
            attempts=attempt,
            first=received.headers.get(TIME) or _iso(received.time),
            last=_iso(self._clock.now()),
            source=self._name,
            group=self._source.group,
            host=self._host,
        )
        text = json.dumps({k: v for k, v in asdict(report).items() if v not in ("", 0)})
        return DeadLetter(received, {**received.headers, DEAD: text}, park=self._park)


def _reason(error: BaseException) -> DeadReason:
    match error:
        case UnknownType():
            return DeadReason.UNKNOWN_TYPE
        case DecodeError():
            return DeadReason.UNDECODABLE
        case Expired():
            return DeadReason.EXPIRED
        case Crashed():
            return DeadReason.CRASHED
        case PayloadMismatch():
            return DeadReason.MISMATCH
        case Reject():
            return DeadReason.REJECTED
        case _:
            return DeadReason.FAILED


def _class_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _trim(error: BaseException) -> str:
    text = scrub("".join(traceback.format_exception(error)))
    return text if len(text) <= _TRACEBACK else "…" + text[-_TRACEBACK:]


def _iso(time: float | None) -> str:
    return "" if time is None else format_time(datetime.fromtimestamp(time, UTC))
