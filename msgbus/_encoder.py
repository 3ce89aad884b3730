"""Encoding: from a payload and its options to a message on its way out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgbus._channel import Channel
from msgbus._delivery import Delivery
from msgbus._message import (
    CAUSATION_ID,
    CONTENT_TYPE,
    CORRELATION_ID,
    EXPIRES,
    ID,
    KEY,
    SOURCE,
    SPECVERSION,
    TIME,
    TRACEPARENT,
    TRACESTATE,
    TYPE,
    Message,
    Stamps,
    check_headers,
    format_time,
    new_id,
)
from msgbus._time import Clock, Duration, seconds
from msgbus.adapter import Address, Outgoing
from msgbus.errors import EncodeError

__all__ = ["Cause", "Encoder"]

Cause = Delivery[Any] | Message


class Encoder:
    """Turns payloads and options into messages on their way out.

    Args:
        service: Written as ``ce-source``.
        clock: Tells the publish time.
    """

    def __init__(self, service: str, clock: Clock) -> None:
        self._service = service
        self._clock = clock
        self._time = Stamps()
        self._expiry = Stamps()

    def __call__(
        self,
        channel: Channel[Any],
        address: Address,
        payload: Any,
        *,
        key: str | None = None,
        delay: Duration = 0.0,
        expires: Duration | datetime | None = None,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        correlation_id: str | None = None,
        cause: Cause | None = None,
    ) -> Outgoing:
        """Return the outgoing message; raises `EncodeError` when something does not fit."""
        kind, body = channel.encode(payload)
        now = self._clock.now()
        message_id = new_id() if id is None else _text("id", id)
        wire = {
            SPECVERSION: "1.0",
            ID: message_id,
            TYPE: kind,
            SOURCE: self._service,
            TIME: self._time(now),
            CONTENT_TYPE: channel.codec.content_type,
        }
        if headers:
            wire.update(check_headers(headers))
        if key is None and channel.key_of is not None:
            key = channel.key_of(payload)
        if key is not None:
            wire[KEY] = _text("key", key)
        if expires is not None:
            wire[EXPIRES] = _end(expires) if isinstance(expires, datetime) else self._after(expires, now)
        if cause is not None:
            _add_cause(wire, cause)
        if correlation_id is not None:
            wire[CORRELATION_ID] = _text("correlation_id", correlation_id)
        return Outgoing(address, body, wire, message_id, key, seconds(delay, "delay=") if delay else 0.0)

    def _after(self, expires: Duration, now: float) -> str:
        return self._expiry(now + seconds(expires, "expires="))


def _add_cause(wire: dict[str, str], cause: Cause) -> None:
    message = cause.message if isinstance(cause, Delivery) else cause
    wire[CAUSATION_ID] = message.id
    wire[CORRELATION_ID] = message.correlation_id or message.id
    for name in (TRACEPARENT, TRACESTATE):
        if name in message.headers:
            wire.setdefault(name, message.headers[name])


def _text(option: str, value: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 512 or not value.isprintable():
        raise EncodeError(f"{option}= takes 1 to 512 printable characters, got {value!r:.80}")
    return value


def _end(expires: datetime) -> str:
    if expires.tzinfo is None:
        raise EncodeError("expires= takes a datetime with a time zone, or a number of seconds")
    return format_time(expires)
