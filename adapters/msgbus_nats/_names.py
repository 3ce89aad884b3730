"""Where everything is at the server: channel names to streams, subjects and consumers, and back.

With the prefix ``msgbus``:

=======================  ============================  ===========================================================
what                     stream                        subject
=======================  ============================  ===========================================================
queue ``orders.eu``      ``msgbus-queue-orders~eu``    ``msgbus.queue.orders.eu``
the same, keyed          the same                      ``msgbus.keyed.<partition>.orders.eu``
topic ``order.placed``   ``msgbus-topics``             ``msgbus.topic.order.placed``
the same, keyed          the same                      ``msgbus.parted.<partition>.order.placed``
one group of it alone    the same                      ``msgbus.direct.<group>@<topic>.order.placed``
topic, ``durable``: no   none (core NATS)              ``msgbus.live.order.placed``
request ``price``        none (core NATS)              ``msgbus.request.price``
request, ``durable``     ``msgbus-request-price``      ``msgbus.request.price``
delayed message          its target's                  ``msgbus.later.<kind>.<hash>.orders.eu``
dead letter              ``msgbus-dead``               ``msgbus.dead.<kind>-<group>@<name>.<channel>``
=======================  ============================  ===========================================================

Names of streams and consumers may not contain dots: they become ``~``, which no channel's name contains; the
wildcards of patterns are escaped (``=2a``, ``=23``). So every name can be read back and no two meet.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgbus.adapter import Address, Kind, Source, escape_name, is_pattern
from msgbus.errors import ChannelError, UnsupportedFeature

__all__ = ["Names", "Place", "Work", "in_partition", "partition_of", "token", "unique"]

_NATIVE = {"stream": str, "subject": str, "consumer": str, "declare": bool, "durable": bool, "partitions": int}
_TAKES = {str: "name without spaces and wildcards", bool: "bool", int: "int"}
_NATIVE_NAME = re.compile(r"[^\s*>\x00-\x1f]+\Z")
_LONGEST = 255
"""The server's limit for names of streams and consumers."""


def token(name: str) -> str:
    """Map a channel's or group's name to one word that JetStream takes as a name and in a subject."""
    return escape_name(name.replace(".", "~"), allowed="_-~", escape="=")


def partition_of(key: str, partitions: int) -> int:
    """Return which partition the messages of *key* are in, the same in every process and release."""
    return zlib.crc32(key.encode()) % partitions


@dataclass(frozen=True, slots=True)
class Place:
    """Where one address is.

    Attributes:
        address: The address.
        stream: Its stream; empty for core NATS.
        subject: What messages are published to; with ``{}`` for the partition on keyed addresses.
        later: What delayed messages are published to, with ``{}`` for something unique; empty where the stream
            takes none.
        partitions: How many; 0 if the address is not keyed.
        consumer: The durable consumer's name if the channel's owner chose it.
        ours: Whether the adapter declares the stream (``native={"declare": False}`` joins one as it is).
        shared: Whether other addresses use the same stream.
    """

    address: Address
    stream: str
    subject: str
    later: str = ""
    partitions: int = 0
    consumer: str = ""
    ours: bool = True
    shared: bool = False

    @property
    def wildcard(self) -> str:
        """The subject that matches everything published to the address."""
        return self.subject.replace("{}", "*")


@dataclass(frozen=True, slots=True)
class Work:
    """A durable consumer.

    Attributes:
        stream: Its stream.
        name: Its name.
        filters: The subjects it takes.
        parted: Whether only one process may be active on it, for the order of keys.
    """

    stream: str
    name: str
    filters: tuple[str, ...]
    parted: bool = False


class Names:
    """Maps addresses and sources.

    Args:
        prefix: The first word of all names.
        partitions: How many partitions a keyed address has unless it says otherwise.
    """

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix = prefix
        self.topics = f"{prefix}-topics"
        self.dead = f"{prefix}-dead"
        self._partitions = partitions
        self._places: dict[Address, Place] = {}

    def place(self, address: Address) -> Place:
        """Return where *address* is.

        Raises:
            ChannelError: It cannot be mapped, or its native options make no sense.
        """
        place = self._places.get(address)
        if place is None:
            place = self._places[address] = self._find(address)
        return place

    def _find(self, address: Address) -> Place:
        native = _checked(address)
        durable = native.get("durable", address.kind is not Kind.REQUEST)
        if address.kind is Kind.REPLY:
            return Place(address, "", address.name)
        if not durable:
            return self._core(address, native)
        if "stream" in native or "subject" in native:
            return self._joined(address, native)
        partitions = native.get("partitions", self._partitions) if address.keyed else 0
        if address.kind is Kind.TOPIC:
            return self._topic(address, partitions, native)
        subject = f"{self.prefix}.keyed.{{}}.{address.name}" if partitions else self._plain(address)
        return Place(
            address,
            _short(f"{self.prefix}-{address.kind}-{token(address.name)}", address),
            subject,
            f"{self.prefix}.later.{address.kind}.{{}}.{address.name}",
            partitions,
            native.get("consumer", ""),
            native.get("declare", True),
        )

    def _plain(self, address: Address) -> str:
        return f"{self.prefix}.{address.kind}.{address.name}"

    def _core(self, address: Address, native: Mapping[str, Any]) -> Place:
        if address.kind is Kind.QUEUE or address.keyed:
            raise UnsupportedFeature("nats", f"durable=False on {address}", "only for topics and requests without key=")
        word = "live" if address.kind is Kind.TOPIC else "request"
        subject = native.get("subject") or f"{self.prefix}.{word}.{_wildcards(address.name)}"
        return Place(address, "", subject)

    def _topic(self, address: Address, partitions: int, native: Mapping[str, Any]) -> Place:
        name = _wildcards(address.name)
        subject = f"{self.prefix}.parted.{{}}.{name}" if partitions else f"{self.prefix}.topic.{name}"
        if "partitions" in native:
            raise ChannelError(f"{address}: all topics share a stream, so partitions= belongs into the URL")
        return Place(
            address,
            self.topics,
            subject,
            f"{self.prefix}.later.topic.{{}}.{address.name}",
            partitions,
            native.get("consumer", ""),
            native.get("declare", True),
            shared=True,
        )

    def _joined(self, address: Address, native: Mapping[str, Any]) -> Place:
        if "stream" not in native or "subject" not in native:
            raise ChannelError(f"{address}: native options 'stream' and 'subject' go together")
        if is_pattern(address.name):
            raise ChannelError(f"{address}: a pattern cannot have a stream of its own")
        partitions = native.get("partitions", self._partitions) if address.keyed else 0
        if bool(partitions) != ("{}" in native["subject"]):
            raise ChannelError(f"{address}: 'subject' needs {{}} for the partition exactly if the channel has a key")
        return Place(
            address,
            native["stream"],
            native["subject"],
            "",
            partitions,
            native.get("consumer", ""),
            native.get("declare", True),
        )

    def source_id(self, source: Source) -> str:
        """Return the one word that names a source in the subjects of its dead letters."""
        return _short(f"{source.address.kind}-{token(source.group)}@{token(source.address.name)}", source)

    def consumer(self, source: Source) -> str:
        """Return the name of the source's durable consumer; partitions add ``@`` and their number."""
        if source.dead:
            return self.source_id(source.alive)
        place = self.place(source.address)
        if place.consumer:
            return place.consumer
        if source.address.kind is not Kind.TOPIC:
            return "work"
        return _short(f"{token(source.group)}@{token(source.address.name)}", source)

    def direct(self, source: Source, channel: str = "") -> str:
        """Return the subject that reaches one source and nobody else, with ``{}`` for the partition if it has any.

        Args:
            source: The source.
            channel: What the message was first published to, if the source is a pattern's.

        Raises:
            ChannelError: There is none, because the topic's stream is not ours.
        """
        place = self.place(source.address)
        if source.address.kind is not Kind.TOPIC:
            return place.subject
        if place.stream and not place.shared:
            raise ChannelError(f"{source}: its stream is joined, so nothing reaches this one group alone")
        channel = (channel or "_") if is_pattern(source.address.name) else source.address.name
        return f"{self.prefix}.direct.{self.consumer(source)}{'@{}' if place.partitions else ''}.{channel}"

    def dead_subject(self, source: Source, channel: str) -> str:
        """Return the subject of dead letters that were published to *channel*."""
        return f"{self.prefix}.dead.{self.source_id(source.alive)}.{channel or '_'}"

    def consumers(self, source: Source) -> list[Work]:
        """Return the durable consumers that serve *source*: one, or one per partition."""
        name = self.consumer(source)
        if source.dead:
            return [Work(self.dead, name, (f"{self.prefix}.dead.{name}.>",))]
        place = self.place(source.address)
        if not place.partitions:
            return [Work(place.stream, name, self._filters(source, place, name))]
        return [
            Work(place.stream, f"{name}@{i}", self._filters(source, place, f"{name}@{i}", i), parted=True)
            for i in range(place.partitions)
        ]

    def _filters(self, source: Source, place: Place, consumer: str, partition: int | None = None) -> tuple[str, ...]:
        if not place.shared:
            return (in_partition(place.subject, partition or 0),)
        name = _wildcards(source.address.name)
        filters = [f"{self.prefix}.direct.{consumer}.>"]
        if not partition:  # what was published without a partition is consumed with the first one
            filters.append(f"{self.prefix}.topic.{name}")
        filters.append(f"{self.prefix}.parted.{'*' if partition is None else partition}.{name}")
        return tuple(filters)

    def channel(self, subject: str) -> str:
        """Return the name of the channel a message was published to, from its subject."""
        words = subject.split(".", 2)
        if len(words) < 3 or words[0] != self.prefix:
            return ""
        rest = words[2]
        return rest.partition(".")[2] if words[1] in ("keyed", "parted", "direct", "dead") else rest


def in_partition(subject: str, partition: int) -> str:
    """Return *subject* with the partition filled in."""
    return subject.replace("{}", str(partition))


def unique(message_id: str) -> str:
    """Return a word for a subject that is the message's own."""
    return hashlib.blake2b(message_id.encode(), digest_size=12).hexdigest()


def _wildcards(name: str) -> str:
    return name[:-1] + ">" if name.endswith("#") else name


def _short(name: str, what: object) -> str:
    if len(name) > _LONGEST:
        raise ChannelError(f"{what} needs a name of {len(name)} characters at the server, at most {_LONGEST} fit")
    return name


def _checked(address: Address) -> Mapping[str, Any]:
    for name, value in address.native.items():
        kind = _NATIVE.get(name)
        if kind is None:
            raise ChannelError(f"{address}: native option {name!r} is unknown; nats knows {', '.join(_NATIVE)}")
        if type(value) is not kind or (isinstance(value, str) and not _NATIVE_NAME.match(value)):
            raise ChannelError(f"{address}: native option {name!r} takes a {_TAKES[kind]}, got {value!r}")
    return address.native
