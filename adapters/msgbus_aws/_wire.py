"""Messages as SQS and SNS carry them.

A message has at most ten attributes there, their values are never empty, and all text must be legal in XML. So
``ce-id``, ``ce-type`` and the application's headers are attributes of their own, for other consumers and for filter
policies; the rest of ours, and what has no room or does not fit, travels as JSON in one more:

====================  ===========================================================================================
``msgbus-headers``    further headers, as a JSON object
``msgbus-body``       ``base64``: the body is not text. ``s3``: it is JSON that says where the body is
``msgbus-due``        seconds since 1970 before which the message is not to be handled
====================  ===========================================================================================

A body that is text is sent as it is.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from msgbus.adapter import CONTENT_TYPE, ID, KEY, TYPE

__all__ = ["BASE64", "DUE", "S3", "Body", "Parcel", "decode_headers", "group_id", "key_of", "open_body", "pack", "wrap"]

HEADERS = "msgbus-headers"
ENCODING = "msgbus-body"
DUE = "msgbus-due"
BASE64 = "base64"
S3 = "s3"
_MOST = 10
"""Message attributes that SQS takes; SNS with raw delivery drops a message that has more."""
_READABLE = frozenset({ID, TYPE})
"""Headers of ours that are attributes of their own: what filter policies and other consumers look at first."""
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")
_RESERVED = re.compile(r"(aws\.|amazon\.|msgbus-(headers|body|due)\Z)", re.IGNORECASE)
_VALUE = re.compile("[\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+\\Z")
_GROUP = re.compile(r"[!-~]{1,128}\Z")
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_LONE = "msgbus."
"""Begins the message group of a message without a key, which has one of its own."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body as text.

    Attributes:
        text: What is sent.
        encoding: How to read it: empty for as it is, else see `ENCODING`.
    """

    text: str
    encoding: str = ""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message ready for SQS or SNS.

    Attributes:
        body: Its body.
        attributes: Its message attributes, as boto3 takes them.
        size: Its size in bytes, as the services count.
    """

    body: Body
    attributes: dict[str, Any]
    size: int


def wrap(body: bytes) -> Body:
    """Return *body* as text; unchanged if it is text that the services take."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if text and (text.isprintable() or not _ILLEGAL.search(text)):  # what is printable is legal, and soon seen
        return Body(text)
    return Body(base64.b64encode(body).decode() or "=", BASE64)


def pack(body: Body, headers: Mapping[str, str], *, due: float | None = None) -> Parcel:
    """Return the message with *headers*, and *due* if it is to wait."""
    attributes: dict[str, Any] = {}
    if body.encoding:
        attributes[ENCODING] = _string(body.encoding)
    if due is not None:
        attributes[DUE] = {"DataType": "Number", "StringValue": repr(due)}
    packed: dict[str, str] = {}
    room = _MOST - 1 - len(attributes)
    for name, value in headers.items():
        if room and _is_attribute(name) and (value if value.isprintable() else _VALUE.match(value)):
            attributes[name] = _string(value)
            room -= 1
        else:
            packed[name] = value
    if packed:
        attributes[HEADERS] = _string(_to_json(packed))
    size = _bytes(body.text) + sum(
        len(name) + len(value["DataType"]) + _bytes(value["StringValue"]) for name, value in attributes.items()
    )
    return Parcel(body, attributes, size)


@functools.lru_cache(maxsize=1024)
def _is_attribute(name: str) -> bool:
    if name in _READABLE:
        return True
    if name.startswith(("ce-", "msgbus-")) or name == CONTENT_TYPE:
        return False
    return len(name) <= 256 and _NAME.match(name) is not None and not _RESERVED.match(name)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _string(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def decode_headers(attributes: Mapping[str, Any]) -> tuple[dict[str, str], str, float | None]:
    """Return the headers, how the body is encoded, and before when the message is not to be handled."""
    headers: dict[str, str] = {}
    encoding, due = "", None
    for name, attribute in attributes.items():
        value = attribute.get("StringValue")
        if value is None:
            value = base64.b64encode(attribute.get("BinaryValue", b"")).decode()
        if name == HEADERS:
            headers.update(_unpack(value))
        elif name == ENCODING:
            encoding = value
        elif name == DUE:
            due = _number(value)
        else:
            headers[name] = value
    return headers, encoding, due


def _unpack(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {HEADERS: text}  # somebody else's attribute of that name
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {HEADERS: text}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def open_body(text: str, encoding: str, attributes: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return the body's bytes, and the headers that were inside it.

    What SNS delivers without raw delivery is the notification as JSON, with the message and its attributes in it.
    Only what has no attributes at all is looked at, so no message of ours, and none that says what it is, is taken
    for one.
    """
    if encoding == BASE64:
        try:
            return base64.b64decode(text, validate=True) if text != "=" else b"", {}
        except ValueError:  # no base64, or no ASCII
            return text.encode(errors="surrogatepass"), {}
    if not attributes and text.startswith("{") and '"TopicArn"' in text:
        return _from_notification(text)
    return text.encode(errors="surrogatepass"), {}


def _from_notification(text: str) -> tuple[bytes, dict[str, str]]:
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        return text.encode(errors="surrogatepass"), {}
    if note.get("Type") != "Notification" or not isinstance(note.get("Message"), str) or "MessageId" not in note:
        return text.encode(errors="surrogatepass"), {}
    given = note.get("MessageAttributes")
    attributes = {
        str(name): {"StringValue": str(attribute.get("Value", ""))}
        for name, attribute in (given.items() if isinstance(given, dict) else ())
        if isinstance(attribute, dict)
    }
    headers, encoding, _ = decode_headers(attributes)
    body, _ = open_body(note["Message"], encoding, {"": ""})
    return body, headers


def group_id(key: str | None, message_id: str) -> str:
    """Return the message group for a key; the key itself where SQS takes it."""
    if key is None:
        return _LONE + fit(message_id, 128 - len(_LONE))
    return fit(key, 128)


def fit(text: str, most: int = 128) -> str:
    """Return *text* if it can be a group or deduplication id, else a digest of it."""
    if len(text) <= most and _GROUP.match(text) and not text.startswith(_LONE):
        return text
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def key_of(headers: Mapping[str, str], group: str | None) -> str | None:
    """Return the ordering key of a received message: ours, or a foreign producer's message group."""
    if KEY in headers:
        return headers[KEY]
    if not group or group.startswith(_LONE) or ID in headers:
        return None
    return group
