"""The structures that cross the line between the core and an adapter; `msgbus.adapter` is their public home."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

__all__ = ["Ack", "Address", "DeadLetter", "Kind", "Nack", "Outcome", "Outgoing", "Received", "Source"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Kind(StrEnum):
    """What an address is."""

    QUEUE = "queue"
    """Point-to-point: each message goes to one consumer."""
    TOPIC = "topic"
    """Publish-subscribe: each message goes to every group, and in a group to one consumer."""
    REQUEST = "request"
    """A queue of requests. Nobody wants an old request, so it may be served by something less durable."""
    REPLY = "reply"
    """One process's private, temporary place for answers; the adapter may drop it when the process is gone."""

    __hash__ = str.__hash__  # the same for equal ones, without a call of Enum's own in every look-up of an address


@dataclass(frozen=True, slots=True)
class Address:
    """Where messages are published.

    Attributes:
        kind: What it is.
        name: The channel's name with the namespace before it; for REPLY, what `Subscription.address` said.
        keyed: Whether messages of one key must be consumed in order, one at a time.
        native: Options only this broker has, from the channel's ``native={...}``.
    """

    kind: Kind
    name: str
    keyed: bool = False
    native: Mapping[str, Any] = field(default_factory=lambda: _NOTHING, hash=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True, slots=True)
class Source:
    """Where messages are consumed: a queue, or a topic (or a pattern of topics) as one group sees it.

    Attributes:
        address: What it consumes. A TOPIC's name may be a pattern (`msgbus.adapter.match_name`).
        group: The consumer group; empty but for topics.
        dead: True for the source's own dead letters instead of its messages.
    """

    address: Address
    group: str = ""
    dead: bool = False

    @property
    def dead_letters(self) -> Source:
        """The source of this source's dead letters."""
        return replace(self, dead=True)

    @property
    def alive(self) -> Source:
        """The source whose dead letters this one is (itself if it is none)."""
        return replace(self, dead=False)

    def __str__(self) -> str:
        group = f", group {self.group!r}" if self.group else ""
        return f"{'dead letters of ' if self.dead else ''}{self.address}{group}"


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message on its way to the broker.

    Attributes:
        target: An Address; or a Source, to reach that one group and nobody else (replay of a dead letter).
        body: The body.
        headers: All metadata, see `msgbus._message`. The adapter must carry every one unchanged.
        id: The message id (also in the headers), for brokers that deduplicate by id.
        key: The ordering key (also in the headers), for brokers that partition by key.
        delay: Seconds before it may be received, at most ``Capabilities.max_delay``.
        channel: The name it was first published to, where the target does not say: it is the source of a pattern.
    """

    target: Address | Source
    body: bytes
    headers: dict[str, str]
    id: str
    key: str | None = None
    delay: float = 0.0
    channel: str = ""


@dataclass(slots=True, eq=False)
class Received:
    """A message handed out by a subscription; also the handle by which it is settled.

    Attributes:
        body: The body.
        headers: Its headers as they were published. What the client keeps elsewhere (RabbitMQ's properties, say)
            is added under the names of `msgbus._message`.
        deliveries: How often the broker has handed it out, this time included; 0 where the broker does not count.
        channel: The name it was published to (a pattern's subscription receives from many).
        key: The ordering key where the broker keeps one, else None.
        time: When the broker stored it, in seconds since 1970, or None.
        position: Where it is in the broker's log (offset, sequence number), or None.
        receipt: The adapter's own handle.
        raw: The client library's own message, for `Delivery.raw`.
        plain: True vouches that it was not handed out before and has neither of the headers that say how often it was
            tried and when it expires, so that an adapter need not decode headers that nobody asks for. Of an answer it
            vouches that the responder did not fail.
        correlation: Of an answer: which request it is for, where that is known without decoding the headers.
    """

    body: bytes
    headers: dict[str, str]
    deliveries: int = 0
    channel: str = ""
    key: str | None = None
    time: float | None = None
    position: int | str | None = None
    receipt: Any = None
    raw: Any = None
    plain: bool = False
    correlation: str | None = None


@dataclass(slots=True, eq=False)
class Ack:
    """The message is done: never deliver it again."""

    received: Received


@dataclass(slots=True, eq=False)
class Nack:
    """Deliver the message again.

    Attributes:
        received: The message.
        delay: Not before so many seconds from now. On a keyed address its key waits with it.
        counted: False gives it back untried (shutdown, a message still in the local buffer): where the broker
            counts exactly, the delivery must not count.
        headers: What an adapter that publishes a new copy puts on it; one that returns the very message in place
            keeps its headers and counts deliveries itself.
    """

    received: Received
    delay: float = 0.0
    counted: bool = True
    headers: dict[str, str] | None = None


@dataclass(slots=True, eq=False)
class DeadLetter:
    """Move the message to its source's dead letters: stored there first, only then settled here.

    Attributes:
        received: The message; its body moves untouched.
        headers: The headers of the dead letter: the message's own plus ``msgbus-dead``.
        park: Keep later messages of its key undelivered until the dead letter is replayed or dropped
            (only asked for where ``Capabilities.park_keys``).
    """

    received: Received
    headers: dict[str, str]
    park: bool = False


Outcome = Ack | Nack | DeadLetter
