"""Names: which queues, exchanges and routing keys stand for an address or a source. No I/O.

==========================  ===========================================================================
``orders``                  the queue of the channel ``orders``
``order.placed@email``      the queue of the group ``email`` on the topic ``order.placed``
``rpc:price``               the queue of the requests ``price``
``reply:…``                 a process's replies
``<queue>#2``               partition 2 of a keyed channel
``<queue>#members``         empty; each process that consumes the partitions shows itself there
``<queue>.dlq``             the dead letters of a queue (of all its partitions together)
==========================  ===========================================================================

A channel that is itself called ``….dlq`` or ``amq.…`` gets its dot doubled, so names never meet: no channel name
has an empty word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from amqp import spec

from msgbus.adapter import ID, KEY, Address, Kind, Source
from msgbus.errors import ChannelError
from msgbus_rabbitmq._channel import method_payload
from msgbus_rabbitmq._message import DELAY, PARTITION
from msgbus_rabbitmq._options import Native, Options

__all__ = ["DUE", "DUE_QUEUES", "LEVELS", "LOST", "MAX_DELAY", "TICK", "Layout", "Route", "level_name", "partition_of"]

_LONGEST = 255
TICK = 100
"""Milliseconds of the shortest parking queue, to which delays are rounded up. Shorter means more queues."""
LEVELS = 24
"""Parking queues; each holds messages twice as long as the one before."""
MAX_DELAY = 14 * 86_400.0
_ROUTES = 10_000
"""Routes that are remembered."""
_DIGITS = 7
"""Significant bits of a delay: at most so many hops, and less than 1.6 % late."""
DUE, DUE_QUEUES, LOST = "msgbus:due", "msgbus:due:queues", "msgbus:lost"


def level_name(level: int) -> str:
    """Return the name of a parking level's exchange and queue."""
    return f"msgbus:delay:{level}"


def partition_of(headers: Mapping[str, str], partitions: int) -> int:
    """Return the partition of a message: by its key, or spread by its id where it has none."""
    return crc32((headers.get(KEY) or headers.get(ID) or "").encode()) % partitions


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message is published.

    Attributes:
        exchange: The exchange; empty for the default one, which delivers to the queue named by the key.
        key: The routing key.
        mandatory: Whether the broker must say so when no queue takes the message.
        persistent: Whether the message is written to disk.
        past_topics: Whether it leads to one group of a topic, past the topic exchange.
        native: The channel's native options.
        extra: Headers of ours to add.
        method: The encoded ``basic.publish``.
    """

    exchange: str
    key: str
    mandatory: bool
    persistent: bool = True
    past_topics: bool = False
    native: Native = field(default_factory=Native)
    extra: Mapping[str, str] = field(default_factory=dict)
    method: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        method = method_payload(spec.Basic.Publish, "Bssbb", 0, self.exchange, self.key, self.mandatory, False)
        object.__setattr__(self, "method", method)

    def delayed(self, delay: float) -> Route:
        """Return the detour of at least *delay* seconds through the parking queues.

        Each set bit of the delay (in ticks) is one parking queue; a header per bit says which ones, so that the
        routing key stays the destination's.
        """
        ticks = -int(-delay * 1000 // TICK)
        if (surplus := ticks.bit_length() - _DIGITS) > 0:
            ticks = -(-ticks >> surplus) << surplus
        bits = {f"{DELAY}.{level}": "1" for level in range(LEVELS) if ticks >> level & 1}
        target = {f"{DELAY}.to": self.exchange} if self.exchange else {}
        return Route(
            level_name(max(ticks.bit_length() - 1, 0)),
            self.key,
            mandatory=True,
            native=replace(self.native, expiration=None),  # it would cut the wait short
            extra={**self.extra, **bits, **target},
        )


class Layout:
    """The names of one vhost, as this application's options make them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._routes: dict[Any, tuple[Mapping[str, Any], Route]] = {}
        self._latest: dict[int, tuple[Address | Source, Route]] = {}  # by identity: most come from the same few objects

    def native(self, address: Address) -> Native:
        """Return an address's native options."""
        return Native.parse(address.native)

    def exchange(self, address: Address) -> str:
        """Return the exchange an address is published to; empty for the default one."""
        native = self.native(address)
        if native.exchange is not None:
            return native.exchange
        return self.options.exchange if address.kind is Kind.TOPIC else ""

    def binding_keys(self, source: Source) -> tuple[str, ...]:
        """Return the AMQP patterns that a source's queue is bound by."""
        return self.native(source.address).keys or (_amqp_pattern(source.address.name),)

    def group(self, source: Source) -> str:
        """Return the name of a source's queue before partitions and dead letters are told apart."""
        address = source.address
        if (name := self.native(address).queue) is not None:
            return name
        if address.kind is Kind.REPLY:  # with the prefix it comes from `Subscription.address`: publish to it
            return address.name if address.name.startswith("reply:") else f"reply:{address.name}"
        name = f"rpc:{address.name}" if address.kind is Kind.REQUEST else address.name
        name = _escape(f"{name}@{source.group}" if address.kind is Kind.TOPIC else name)
        if len(name) + len(".dlq") > _LONGEST:
            raise ChannelError(f"{source}: its queue would be called {name!r}, longer than AMQP's {_LONGEST} bytes")
        return name

    def queues(self, source: Source) -> tuple[str, ...]:
        """Return the queues of a source: one, or one per partition."""
        if source.dead:
            return (self.dead_queue(source),)
        if self.is_partitioned(source.address):
            return tuple(f"{self.group(source)}#{i}" for i in range(self.options.partitions))
        return (self.group(source),)

    def dead_queue(self, source: Source) -> str:
        """Return the queue of a source's dead letters."""
        return self.native(source.address).dead_letters or f"{self.group(source)}.dlq"

    def members_queue(self, source: Source) -> str:
        """Return the queue, always empty, whose consumers are the processes that share a source's partitions."""
        return f"{self.group(source)}#members"

    def sorters(self, source: Source) -> tuple[str, str]:
        """Return the exchanges that sort a keyed topic's messages into a group's partitions: by header, and others."""
        return self.group(source), f"{self.group(source)}#"

    def is_partitioned(self, address: Address) -> bool:
        """Whether the address's messages are split by key: not where an existing queue was named."""
        return address.keyed and self.native(address).queue is None

    def queue_type(self, source: Source) -> str:
        """Return the type of a source's queue."""
        if source.address.kind in (Kind.REQUEST, Kind.REPLY):
            return "classic"  # nobody wants an old request, and a classic queue answers sooner
        return self.native(source.address).queue_type or self.options.queue_type

    def route(self, target: Address | Source, headers: Mapping[str, str]) -> Route:
        """Return where a message goes."""
        latest = self._latest.get(id(target))
        if latest is not None and latest[0] is target:
            return latest[1]
        source = target if isinstance(target, Source) else None
        address = target.address if isinstance(target, Source) else target
        part = partition_of(headers, self.options.partitions) if self.is_keyed(address) else None
        cached = self._routes.get((target, part))
        if cached is not None and cached[0] is address.native:
            route = cached[1]
        else:
            route = self._route(address, part) if source is None else self._route_to(source, part)
            if len(self._routes) > _ROUTES:
                self._routes.clear()  # reply addresses come and go
            self._routes[target, part] = address.native, route
        if part is None:
            if len(self._latest) > _ROUTES:
                self._latest.clear()
            self._latest[id(target)] = target, route
        return route

    def is_keyed(self, address: Address) -> bool:
        """Whether the address's messages are split by key (cheap: asked for every message)."""
        return address.keyed and "queue" not in address.native

    def _route(self, address: Address, part: int | None) -> Route:
        native = self.native(address)
        key = native.keys[0] if native.keys else address.name
        if address.kind is Kind.TOPIC:
            extra = {} if part is None else {PARTITION: str(part)}
            return Route(self.exchange(address), key, mandatory=False, native=native, extra=extra)
        if native.exchange is not None:
            return Route(native.exchange, key, mandatory=True, native=native)
        return self._route_to(Source(address), part)

    def _route_to(self, source: Source, part: int | None) -> Route:
        native = self.native(source.address)
        queues = self.queues(source)
        durable = source.address.kind not in (Kind.REQUEST, Kind.REPLY)
        name = queues[part] if part is not None and not source.dead else queues[0]
        topic = source.address.kind is Kind.TOPIC
        return Route("", name, mandatory=True, persistent=durable, past_topics=topic, native=native)


def _escape(name: str) -> str:
    if name.endswith(".dlq"):
        name = name.removesuffix(".dlq") + "..dlq"
    return "amq.." + name.removeprefix("amq.") if name.startswith("amq.") else name


def _amqp_pattern(name: str) -> str:
    """Return the AMQP pattern: its ``#`` stands for any number of words, even none; ours for one or more."""
    return name.removesuffix("#") + "*.#" if name.endswith("#") else name
