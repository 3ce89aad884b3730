"""Messages, and how their metadata travels: as headers with CloudEvents attribute names.

The body is the payload itself. Everything else is in text headers, so that any client can read what we publish,
and a message without a single header is consumed like any other.

=====================  ==========================================================================================
``ce-specversion``     always ``1.0``: with the next four this is a CloudEvent in binary mode
``ce-id``              the message id; the same for every copy (retry, dead letter, replay) of a message
``ce-type``            the payload's type name
``ce-source``          the service that published it
``ce-time``            when it was published (RFC 3339, UTC)
``content-type``       of the body, e.g. ``application/json``
``ce-partitionkey``    the ordering key (CloudEvents partitioning extension)
``ce-correlationid``   groups the messages of one conversation (CloudEvents correlation extension)
``ce-causationid``     the id of the message that caused this one (the same extension)
``ce-expirytime``      not to be handled after this time, RFC 3339 (CloudEvents expiry-time extension)
``traceparent``        W3C trace context, passed on untouched (and ``tracestate``)
``msgbus-reply-to``    where the answer to a request goes
``msgbus-error``       on an answer: the responder failed; JSON with ``type`` and ``detail``
``msgbus-attempts``    how many attempts were made before this copy of the message was published
``msgbus-dead``        on a dead letter: JSON that says why, when, where and after how many attempts
=====================  ==========================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

from msgbus.errors import EncodeError

__all__ = [
    "ATTEMPTS",
    "CAUSATION_ID",
    "CONTENT_TYPE",
    "CORRELATION_ID",
    "DEAD",
    "ERROR",
    "EXPIRES",
    "ID",
    "KEY",
    "REPLY_TO",
    "SOURCE",
    "SPECVERSION",
    "TIME",
    "TRACEPARENT",
    "TRACESTATE",
    "TYPE",
    "Message",
    "Stamps",
    "check_headers",
    "format_time",
    "new_id",
    "parse_time",
]

SPECVERSION = "ce-specversion"
ID = "ce-id"
TYPE = "ce-type"
SOURCE = "ce-source"
TIME = "ce-time"
CONTENT_TYPE = "content-type"
KEY = "ce-partitionkey"
CORRELATION_ID = "ce-correlationid"
CAUSATION_ID = "ce-causationid"
EXPIRES = "ce-expirytime"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
REPLY_TO = "msgbus-reply-to"
ERROR = "msgbus-error"
ATTEMPTS = "msgbus-attempts"
DEAD = "msgbus-dead"

_OWN = frozenset({SPECVERSION, ID, TYPE, SOURCE, TIME, CONTENT_TYPE, KEY, CORRELATION_ID, CAUSATION_ID, EXPIRES})
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, as published and as received.

    Attributes:
        id: Identifies the message; every copy of it (retry, dead letter, replay) keeps it.
        type: The payload's type name; chooses the handler on a channel that carries several types.
        source: The service that published it; empty when a foreign producer did not say.
        time: When it was published; None when a foreign producer did not say.
        body: The encoded payload.
        content_type: The body's media type.
        key: The ordering key, or None.
        headers: The application's own headers (and a foreign producer's), read-only.
        correlation_id: Groups the messages of one conversation.
        causation_id: The id of the message that caused this one.
        reply_to: Where an answer is expected, on requests.
        expires: After this time the message is not handled any more.
    """

    id: str
    body: bytes
    type: str = ""
    source: str = ""
    time: datetime | None = None
    content_type: str = ""
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    correlation_id: str | None = None
    causation_id: str | None = None
    reply_to: str | None = None
    expires: datetime | None = None

    @classmethod
    def from_wire(cls, body: bytes, wire: Mapping[str, str], key: str | None = None) -> Message:
        """Read a message from its wire headers; all of them are optional."""
        get = wire.get
        return cls(
            id=get(ID) or "",
            body=body,
            type=get(TYPE) or "",
            source=get(SOURCE) or "",
            time=parse_time(get(TIME)),
            content_type=get(CONTENT_TYPE) or "",
            key=key if key is not None else get(KEY),
            headers=MappingProxyType({k: v for k, v in wire.items() if k not in _OWN and not k.startswith("msgbus-")}),
            correlation_id=get(CORRELATION_ID),
            causation_id=get(CAUSATION_ID),
            reply_to=get(REPLY_TO),
            expires=parse_time(get(EXPIRES)),
        )

    def to_wire(self) -> dict[str, str]:
        """Return the message's metadata as wire headers; what is empty is left out."""
        wire = dict(self.headers)
        wire[SPECVERSION] = "1.0"
        wire[ID] = self.id
        if self.type:
            wire[TYPE] = self.type
        if self.source:
            wire[SOURCE] = self.source
        if self.time is not None:
            wire[TIME] = format_time(self.time)
        if self.content_type:
            wire[CONTENT_TYPE] = self.content_type
        if self.key is not None:
            wire[KEY] = self.key
        if self.correlation_id is not None:
            wire[CORRELATION_ID] = self.correlation_id
        if self.causation_id is not None:
            wire[CAUSATION_ID] = self.causation_id
        if self.reply_to is not None:
            wire[REPLY_TO] = self.reply_to
        if self.expires is not None:
            wire[EXPIRES] = format_time(self.expires)
        return wire


_DRAWN = 256
_ids: list[str] = []
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_ids.clear)


def new_id() -> str:
    """Return a new message id: 128 random bits in hexadecimal.

    They are drawn many at a time: asking the system for each gives up the interpreter's lock, and with an adapter's
    thread beside us that costs more than all the rest of encoding a message.
    """
    try:
        return _ids.pop()
    except IndexError:
        drawn = os.urandom(_DRAWN * 16).hex()
        _ids.extend(drawn[start : start + 32] for start in range(32, len(drawn), 32))
        return drawn[:32]


def format_time(time: datetime) -> str:
    """Return *time* as RFC 3339 in UTC with microseconds."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Stamps:
    """Writes times since 1970 as RFC 3339 in UTC, to the millisecond; formatting is dear, and a second shares it."""

    def __init__(self) -> None:
        self._millisecond = -1
        self._text = ""
        self._second = -1
        self._date = ""

    def __call__(self, time: float) -> str:
        """Return *time* as text."""
        millisecond = int(time * 1000)
        if millisecond != self._millisecond:
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._date = datetime.fromtimestamp(second, UTC).isoformat()[:19]
                self._second = second
            self._text = f"{self._date}.{rest:03d}Z"
            self._millisecond = millisecond
        return self._text


def parse_time(text: str | None) -> datetime | None:
    """Read an RFC 3339 time; None when there is none or a foreign producer wrote something else."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo is UTC else time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def check_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the application's *headers* if every broker can carry them unchanged.

    Names consist of ASCII letters, digits, ``_``, ``.`` and ``-`` and do not begin with ``ce-`` or ``msgbus-``;
    values are text without control characters.

    Raises:
        EncodeError: One does not fit; the text names it.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not name or len(name) > 128 or not _NAME_CHARACTERS.issuperset(name):
            raise EncodeError(
                f"header name {name!r} cannot be carried by every broker: use 1 to 128 ASCII letters, digits, "
                "'_', '.' and '-'"
            )
        lowered = name.lower()
        if lowered in _OWN or lowered.startswith(("ce-", "msgbus-")):
            raise EncodeError(f"header {name!r} is msgbus's own; set it by the option of send/publish instead")
        if not isinstance(value, str):
            raise EncodeError(f"header {name!r} must be a string, got {type(value).__name__}")
        if not value.isprintable() and any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value):
            raise EncodeError(f"header {name!r} has a control character or half a surrogate pair: {value!r}")
    return headers
