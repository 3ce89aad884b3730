"""One delivery of a message, from SQS's answer until it is settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgbus.adapter import Received
from msgbus_aws._wire import S3, Body, decode_headers, key_of, open_body

__all__ = ["Receipt", "read_message"]


class Receipt:
    """What is known of one delivery.

    Attributes:
        id: SQS's message id, the same for each delivery.
        handle: SQS's receipt handle, of the latest delivery.
        body: The body as it travelled, to be moved on unchanged.
        due: Before when the message is not to be handled, or None.
        broken: Why its body cannot be had, or nothing.
        received: When it was received (monotonic); it stays hidden for at most twelve hours from then.
        deadline: Until when it is ours (monotonic).
        handed: Whether it was handed out.
        busy: Whether it is being settled.
    """

    __slots__ = ("body", "broken", "busy", "deadline", "due", "handed", "handle", "id", "received")

    def __init__(self, id: str, handle: str, body: Body, due: float | None, broken: str) -> None:
        self.id = id
        self.handle = handle
        self.body = body
        self.due = due
        self.broken = broken
        self.received = 0.0
        self.deadline = 0.0
        self.handed = False
        self.busy = False


def read_message(raw: dict[str, Any], channel: str, fetch: Callable[[str], bytes]) -> Received:
    """Return a received message; bodies that are elsewhere are fetched by *fetch*."""
    attributes = raw.get("MessageAttributes", {})
    headers, encoding, due = decode_headers(attributes)
    text, broken = raw["Body"], ""
    if encoding == S3:
        try:
            body = fetch(text)
        except LookupError as exc:
            body, broken = text.encode(), str(exc)
    else:
        body, inner = open_body(text, encoding, attributes)
        headers.update(inner)
    system = raw.get("Attributes", {})
    sent = system.get("SentTimestamp")
    return Received(
        body,
        headers,
        int(system.get("ApproximateReceiveCount", 0)),
        channel,
        key_of(headers, system.get("MessageGroupId")),
        int(sent) / 1000 if sent else None,
        None,
        Receipt(raw["MessageId"], raw["ReceiptHandle"], Body(text, encoding), due, broken),
        raw,
    )
