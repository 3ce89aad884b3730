"""Messages on the wire: headers to AMQP properties and back.

What AMQP has a property for travels as that property and nowhere else, so that other clients find it where they
look: the id as ``message_id``, the payload's type as ``type``, and so on. The rest is in the header table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from struct import Struct, error
from typing import Any

from amqp.basic_message import Message
from amqp.exceptions import FrameSyntaxError
from amqp.serialization import decode_properties_basic, loads

from msgbus.adapter import CONTENT_TYPE, CORRELATION_ID, ID, REPLY_TO, SOURCE, TIME, TYPE

__all__ = ["CHANNEL", "DELAY", "PARTITION", "Delivered", "encode_content", "read_headers", "spans"]

CHANNEL = "x-msgbus-channel"
"""On copies that travel past the topic exchange: the topic the message was published to."""
PARTITION = "msgbus-partition"
"""On messages of keyed topics: the partition their key belongs to."""
DELAY = "msgbus-delay"
"""Prefix of the headers that lead a delayed message through the parking queues."""

# The properties' flag bits. The others that AMQP has (encoding, user id, cluster id) are skipped.
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE = 0x8000, 0x2000, 0x1000
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 0x0800, 0x0400, 0x0200, 0x0100
_MESSAGE_ID, _TIMESTAMP, _TYPE, _APP_ID = 0x0080, 0x0040, 0x0020, 0x0008
# Properties follow each other from the highest flag bit to the lowest. Each has its slot in that order (but the header
# table and the delivery mode, always there, share one), and those that headers become are found by name.
_SLOTS = {
    CONTENT_TYPE: (0, _CONTENT_TYPE),
    CORRELATION_ID: (3, _CORRELATION_ID),
    REPLY_TO: (4, _REPLY_TO),
    ID: (6, _MESSAGE_ID),
    TYPE: (8, _TYPE),
    SOURCE: (9, _APP_ID),
}
_TABLE_SLOT, _PRIORITY_SLOT, _EXPIRATION_SLOT, _TIMESTAMP_SLOT = 1, 2, 5, 7
_NO_SLOTS = [b""] * 10
_ALL = tuple(1 << bit for bit in range(15, 1, -1))
_ONE_OCTET = _DELIVERY_MODE | _PRIORITY
_SHORT = 255
"""The most bytes of a property; what is longer goes into the header table."""
_OCTETS = [bytes([n]) for n in range(256)]

_HEADER = Struct(">HHQH")
_LONG = Struct(">I")
_LONGLONG = Struct(">Q")
_INTEGER = Struct(">q")
_TEXT, _LONG_INTEGER = ord("S"), ord("l")
_BROKER_HEADERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "x-msgbus-")
_OUR_HEADERS = (PARTITION, DELAY)


@lru_cache(4096)
def _name(name: str) -> bytes:
    raw = name.encode()
    if len(raw) > _SHORT:
        raise ValueError(f"the header name {name[:40]!r}… has {len(raw)} bytes, AMQP takes at most {_SHORT}")
    return bytes([len(raw)]) + raw + b"S"


def encode_content(
    headers: Mapping[str, str],
    size: int,
    *,
    timestamp: int,
    persistent: bool,
    priority: int | None = None,
    expiration: str | None = None,
) -> bytes:
    """Return the content header's payload for a body of *size* bytes.

    Raises:
        ValueError: A header cannot be encoded.
    """
    flags = _HEADERS | _DELIVERY_MODE
    slots = _NO_SLOTS.copy()
    table: list[bytes] = []
    octets, slot_of = _OCTETS, _SLOTS.get
    for name, value in headers.items():
        raw = value.encode()
        length = len(raw)
        if length <= _SHORT and (place := slot_of(name)):
            slot, flag = place
            slots[slot] = octets[length] + raw
            flags |= flag
        else:
            table.append(_name(name) + _LONG.pack(length) + raw)
    fields = b"".join(table)
    slots[_TABLE_SLOT] = _LONG.pack(len(fields)) + fields + (b"\x02" if persistent else b"\x01")
    if TIME in headers:  # and only then: what was published without a time must arrive without one
        slots[_TIMESTAMP_SLOT] = _LONGLONG.pack(timestamp)
        flags |= _TIMESTAMP
    if priority is not None:
        slots[_PRIORITY_SLOT] = octets[priority]
        flags |= _PRIORITY
    if expiration is not None:
        slots[_EXPIRATION_SLOT] = octets[len(expiration)] + expiration.encode()
        flags |= _EXPIRATION
    return _HEADER.pack(60, 0, size, flags) + b"".join(slots)


class Delivered(Message):  # type: ignore[misc]
    """py-amqp's own message, decoded when somebody looks at it (`Received.raw`)."""

    channel = None

    def __init__(self, method: bytes, header: bytes, body: bytes) -> None:
        self._method = method
        self._header = header
        self.body = body

    @property
    def properties(self) -> dict[str, Any]:
        """The AMQP properties, as py-amqp names them."""
        properties: dict[str, Any] = decode_properties_basic(self._header, 12)[0]
        return properties

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Consumer tag, delivery tag, redelivered flag, exchange and routing key."""
        names = ("consumer_tag", "delivery_tag", "redelivered", "exchange", "routing_key")
        return dict(zip(names, loads("sLbss", self._method, 4)[0], strict=True))


def read_headers(header: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Read a content header's payload.

    Returns:
        The headers as they were published, and the table entries that are the broker's or ours.
    """
    headers: dict[str, str] = {}
    own: dict[str, Any] = {}
    offset = 14
    for flag, name in _present(header[12] << 8 | header[13]):
        if name:
            stop = offset + 1 + header[offset]
            if name not in headers:
                headers[name] = header[offset + 1 : stop].decode("utf-8", "replace")
            offset = stop
        elif flag == _HEADERS:
            offset = _read_table(header, offset, headers, own)
        elif flag == _TIMESTAMP:
            if TIME not in headers:
                headers[TIME] = _time(*_LONGLONG.unpack_from(header, offset))
            offset += 8
        else:
            offset += 1 if flag & _ONE_OCTET else 1 + header[offset]
    return headers, own


@lru_cache(1024)
def _present(flags: int) -> tuple[tuple[int, str], ...]:
    """Return the properties that are there, in order, and the headers that they become."""
    names = {flag: name for name, (_, flag) in _SLOTS.items()}
    return tuple((flag, names.get(flag, "")) for flag in _ALL if flags & flag)


def _read_table(data: bytes, start: int, headers: dict[str, str], own: dict[str, Any]) -> int:
    """Read the header table; what is not a text string takes py-amqp's way."""
    unpack = _LONG.unpack_from
    stop: int = start + 4 + unpack(data, start)[0]
    offset = start + 4
    while offset < stop:
        after = offset + 1 + data[offset]
        name, ours = _known(data[offset + 1 : after])
        if data[after] == _TEXT:
            begin = after + 5
            offset = begin + unpack(data, after + 1)[0]
            (own if ours else headers)[name] = data[begin:offset].decode("utf-8", "replace")
        elif ours and data[after] == _LONG_INTEGER:  # x-delivery-count, on every message of a quorum queue
            (own[name],) = _INTEGER.unpack_from(data, after + 1)
            offset = after + 9
        else:
            _read_mixed_table(data, start, headers, own)
            break
    return stop


def spans(header: bytes) -> list[tuple[str, int, int]]:
    """Return where a content header's values are, with the headers they become; without a name what becomes none.

    What is the broker's or ours in the table is left out; nothing is returned for a table with more than texts.
    """
    found: list[tuple[str, int, int]] = []
    offset = 14
    for flag, name in _present(header[12] << 8 | header[13]):
        if flag == _HEADERS:
            start, offset = offset + 4, offset + 4 + _LONG.unpack_from(header, offset)[0]
            while start < offset:
                after = start + 1 + header[start]
                entry, ours = _known(header[start + 1 : after])
                if header[after] == _TEXT:
                    begin = after + 5
                    start = begin + _LONG.unpack_from(header, after + 1)[0]
                    if not ours:
                        found.append((entry, begin, start))
                elif ours and header[after] == _LONG_INTEGER:
                    start = after + 9
                else:
                    return []
        elif flag == _TIMESTAMP:
            found.append(("", offset, offset + 8))
            offset += 8
        elif flag & _ONE_OCTET:
            offset += 1
        else:
            stop = offset + 1 + header[offset]
            if name:
                found.append((name, offset + 1, stop))
            offset = stop
    return found


def _read_mixed_table(data: bytes, start: int, headers: dict[str, str], own: dict[str, Any]) -> None:
    try:
        (table,), _ = loads("F", data, start)
    except (ValueError, OverflowError, OSError, error, FrameSyntaxError):
        return  # a foreign producer's nonsense, such as a time in milliseconds: the message is whole without it
    for name, value in table.items():
        if _is_own(name):
            own[name] = value
        else:
            headers[_text(name)] = _text(value)


@lru_cache(4096)
def _known(raw: bytes) -> tuple[str, bool]:
    name = raw.decode(errors="replace")
    return name, _is_own(name)


def _is_own(name: str) -> bool:
    return name.startswith((*_BROKER_HEADERS, *_OUR_HEADERS))


def _time(timestamp: int) -> str:
    try:
        return datetime.fromtimestamp(timestamp, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return ""  # a foreign producer's milliseconds or nonsense: nobody said when


def _text(value: Any) -> str:
    """Return a foreign client's header value as text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # py-amqp lets half a surrogate pair through
    if isinstance(value, bool | dict | list):
        return json.dumps(value, default=str)
    return "" if value is None else str(value)
