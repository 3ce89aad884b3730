"""Records and messages: how each becomes the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["CHANNEL", "DUE", "decode_key", "encode_key", "from_headers", "to_headers"]

DUE = "msgbus-due"
"""On a waiting record: not before this time, in seconds since 1970."""
CHANNEL = "msgbus-channel"
"""On a waiting record: the channel it was published to."""

Headers = list[tuple[str, bytes]]
_encode, _decode = str.encode, bytes.decode  # looked up once: this is done for each header


def to_headers(headers: Mapping[str, str]) -> Headers:
    """Return text headers as Kafka's."""
    try:
        return [(name, _encode(value)) for name, value in headers.items()]
    except UnicodeEncodeError:
        # A foreign producer wrote what is not UTF-8: it was read by `from_headers`, and becomes the same bytes again.
        return [(name, value.encode("utf-8", "surrogateescape")) for name, value in headers.items()]


def from_headers(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """Return Kafka's headers as text; a null value is an empty one, and of equal names the last one counts."""
    try:
        return {name: _decode(value) for name, value in headers}  # type: ignore[arg-type] # rarely null, see below
    except (UnicodeDecodeError, TypeError):
        return {name: (value or b"").decode("utf-8", "surrogateescape") for name, value in headers}


def encode_key(key: str | None) -> bytes | None:
    """Return a message's key as a record's."""
    return None if key is None else key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes | None) -> str | None:
    """Return a record's key as a message's."""
    return None if key is None else key.decode("utf-8", "surrogateescape")
