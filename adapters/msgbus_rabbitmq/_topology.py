"""Declaring and verifying, on a short-lived connection of its own (kombu, in a thread).

Away from publishing and consuming, because the broker answers a declaration that does not fit by closing the
channel, and with kombu, because nothing here needs to be fast.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu
from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed

from msgbus.adapter import Address, Kind, Provision, Source, Topology
from msgbus.errors import TopologyError
from msgbus_rabbitmq._errors import reason, translate
from msgbus_rabbitmq._layout import DUE, DUE_QUEUES, LEVELS, LOST, TICK, Layout, level_name
from msgbus_rabbitmq._message import DELAY, PARTITION

__all__ = ["Declarer", "in_thread"]

_NEVER = 1_000_000
"""The broker's own delivery limit, so high that the core's acts first. RabbitMQ 4 drops messages after 20 without."""
_REQUEST_LIFE = 3_600_000
"""Milliseconds after which an unanswered request is dropped: its caller has gone."""


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run something that blocks, in a thread that ends with it (the loop's own pool keeps its threads)."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="msgbus-rabbitmq")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, function, *args)
    finally:
        executor.shutdown(wait=False)


class Declarer:
    """Brings the broker in line with a topology, or checks that it is.

    Args:
        connect: Returns a kombu connection, not yet connected.
        layout: The names.
        provision: What may be done.
    """

    def __init__(self, connect: Callable[[], kombu.Connection], layout: Layout, provision: Provision) -> None:
        self._connect = connect
        self._layout = layout
        self._provision = provision

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        sources = {source.alive: None for source in topology.sources if source.address.kind is not Kind.REPLY}
        addresses = {address: None for address in topology.addresses if address.kind is not Kind.REPLY}
        for source in sources:
            self._layout.queues(source)  # a name that does not fit is refused before anything is created
        if self._provision is Provision.SKIP or not (sources or addresses):
            return
        await in_thread(self._run, list(addresses), list(sources))

    async def remove(self, source: Source) -> None:
        """See `Adapter.remove`."""
        await in_thread(self._remove, source.alive)

    def _remove(self, source: Source) -> None:
        layout = self._layout
        queues = [layout.dead_queue(source)]
        if layout.native(source.address).declare:
            queues += layout.queues(source)
        exchanges = []
        if layout.is_partitioned(source.address):
            queues.append(layout.members_queue(source))
            exchanges = [] if source.address.kind is not Kind.TOPIC else list(layout.sorters(source))
        try:
            with self._connect() as connection:
                channel = connection.channel()
                for queue in queues:
                    channel.queue_delete(queue)
                for exchange in exchanges:
                    channel.exchange_delete(exchange)
        except Exception as exc:
            raise translate(exc, f"cannot remove {source}") from exc

    def _run(self, addresses: list[Address], sources: list[Source]) -> None:
        verify = self._provision is Provision.VERIFY
        try:
            with self._connect() as connection:
                session = (_Verify if verify else _Create)(connection, self._layout)
                session.prepare()
                for address in addresses:
                    session.address(address)
                for source in sources:
                    session.source(source)
                session.finish()
        except Exception as exc:
            raise translate(exc, "cannot declare") from exc


class _Create:
    def __init__(self, connection: kombu.Connection, layout: Layout) -> None:
        self._connection = connection
        self._channel = connection.channel()
        self._layout = layout

    def prepare(self) -> None:
        """Declare what all applications of the vhost share: the topic exchange and the parking queues."""
        if not self._has_parking():
            self._parking()
        self.topic_exchange(self._layout.options.exchange, "topic")

    def _has_parking(self) -> bool:
        """Whether the last of the parking exchanges is there; then all are, and 75 round trips are saved."""
        try:
            self._connection.channel().exchange_declare(level_name(LEVELS - 1), "headers", passive=True)
        except NotFound:
            return False
        return True

    def _parking(self) -> None:
        self.exchange(LOST, "fanout")
        self.queue(LOST, {"x-queue-type": "quorum"})
        self.bind(LOST, LOST, "")
        self.exchange(DUE_QUEUES, "direct", {"alternate-exchange": LOST})
        self.exchange(DUE, "headers", {"alternate-exchange": DUE_QUEUES})
        for level in range(LEVELS):
            below = level_name(level - 1) if level else DUE
            name = level_name(level)
            self.queue(
                name,
                {
                    "x-queue-type": "quorum",
                    "x-message-ttl": TICK << level,
                    "x-dead-letter-exchange": below,
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",
                },
            )
            self.exchange(name, "headers", {"alternate-exchange": below})
            self.bind(name, name, "", {"x-match": "all", f"{DELAY}.{level}": "1"})

    def topic_exchange(self, name: str, kind: str) -> None:
        """Declare an exchange that messages may be published to with a delay."""
        self.exchange(name, kind)
        self._join(name)

    def _join(self, name: str) -> None:
        self.bind_exchange(name, DUE, "", {"x-match": "all", f"{DELAY}.to": name})

    def address(self, address: Address) -> None:
        """Declare what an address is published to."""
        native = self._layout.native(address)
        if native.exchange is not None:
            if native.declare:
                self.topic_exchange(native.exchange, native.exchange_type)
            else:
                self._join(native.exchange)
        if address.kind is not Kind.TOPIC:
            self._queues(Source(address))

    def source(self, source: Source) -> None:
        """Declare what a source consumes, and its dead letters."""
        self.address(source.address)
        self._queues(source)
        if self._layout.is_partitioned(source.address):
            self.queue(self._layout.members_queue(source), {"x-queue-type": "classic"})
        quorum = {"x-queue-type": "quorum", "x-delivery-limit": _NEVER}
        self.queue(self._layout.dead_queue(source), quorum if self._is_quorum(source) else {"x-queue-type": "classic"})

    def _is_quorum(self, source: Source) -> bool:
        return self._layout.queue_type(source) == "quorum"

    def _queues(self, source: Source) -> None:
        native = self._layout.native(source.address)
        queues = self._layout.queues(source)
        arguments = {"x-queue-type": self._layout.queue_type(source), **self._own_arguments(source), **native.arguments}
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if native.queue is None:
            self._same_partitions(source, queues)
        for queue in reversed(queues):  # so that the first partition is there only if all are
            if native.declare:
                self.queue(queue, arguments)
            self.bind(queue, DUE_QUEUES, queue)  # where its delayed messages come back
        if native.declare:
            self._bindings(source, queues)

    def _same_partitions(self, source: Source, queues: tuple[str, ...]) -> None:
        """Refuse to split by key what exists in one piece, or in another number of pieces."""
        group = self._layout.group(source)
        exists = self._queue_exists
        if not self._layout.is_partitioned(source.address):
            if exists(f"{group}#0"):
                raise TopologyError(f"queue {group!r} exists with a key, split into partitions; it is declared without")
        elif exists(group):
            raise TopologyError(f"queue {group!r} exists without a key; it is declared with one")
        elif exists(f"{group}#{len(queues)}") or (exists(queues[0]) and not exists(queues[-1])):
            raise TopologyError(f"queue {group!r} exists with another number of partitions than {len(queues)}")

    def _queue_exists(self, name: str) -> bool:
        channel = self._connection.channel()
        try:
            channel.queue_declare(name, passive=True)
        except NotFound:
            return False
        finally:
            channel.close()
        return True

    def _own_arguments(self, source: Source) -> dict[str, Any]:
        arguments: dict[str, Any] = {"x-delivery-limit": _NEVER} if self._is_quorum(source) else {}
        if self._layout.is_partitioned(source.address):
            arguments["x-single-active-consumer"] = True
        if source.address.kind is Kind.REQUEST:
            arguments["x-message-ttl"] = _REQUEST_LIFE
        return arguments

    def _bindings(self, source: Source, queues: tuple[str, ...]) -> None:
        exchange = self._layout.exchange(source.address)
        if not exchange:
            return
        keys = self._layout.binding_keys(source)
        if not self._layout.is_partitioned(source.address):
            for key in keys:
                self.bind(queues[0], exchange, key)
            return
        # The partition is a header, so a group's own exchange sorts by it; what has none goes to the first.
        sorter, rest = self._layout.sorters(source)
        self.exchange(rest, "fanout")
        self.bind(queues[0], rest, "")
        self.exchange(sorter, "headers", {"alternate-exchange": rest})
        for number, queue in enumerate(queues):
            self.bind(queue, sorter, "", {"x-match": "all", PARTITION: str(number)})
        for key in keys:
            self.bind_exchange(sorter, exchange, key)

    def exchange(self, name: str, kind: str, arguments: dict[str, Any] | None = None) -> None:
        """Declare a durable exchange."""
        with _named(f"exchange {name!r}"):
            kombu.Exchange(name, kind, durable=True, arguments=arguments, channel=self._channel).declare()

    def queue(self, name: str, arguments: dict[str, Any]) -> None:
        """Declare a durable queue."""
        with _named(f"queue {name!r}"):
            kombu.Queue(name, durable=True, queue_arguments=arguments, channel=self._channel).queue_declare()

    def bind(self, queue: str, exchange: str, key: str, arguments: dict[str, Any] | None = None) -> None:
        """Bind a queue."""
        with _named(f"binding of queue {queue!r} to exchange {exchange!r}"):
            self._channel.queue_bind(queue, exchange, key, arguments=arguments)

    def bind_exchange(self, to: str, exchange: str, key: str, arguments: dict[str, Any] | None = None) -> None:
        """Bind an exchange to another one, as its destination."""
        with _named(f"binding of exchange {to!r} to exchange {exchange!r}"):
            self._channel.exchange_bind(to, exchange, key, arguments=arguments)

    def finish(self) -> None:
        """Nothing is left to say."""


class _Verify(_Create):
    """Creates nothing: looks for each thing, then compares it by declaring it again where that is allowed."""

    def __init__(self, connection: kombu.Connection, layout: Layout) -> None:
        super().__init__(connection, layout)
        self._missing: list[str] = []

    def prepare(self) -> None:
        """What all share is needed by those alone who delay; the topic exchange comes with the topics."""

    def address(self, address: Address) -> None:
        if address.kind is Kind.TOPIC and (exchange := self._layout.exchange(address)):
            self.exchange(exchange, self._layout.native(address).exchange_type)
        super().address(address)

    def exchange(self, name: str, kind: str, arguments: dict[str, Any] | None = None) -> None:
        if self._exists(f"exchange {name!r}", lambda c: c.exchange_declare(name, kind, passive=True)):
            self._compare(lambda: super(_Verify, self).exchange(name, kind, arguments))

    def queue(self, name: str, arguments: dict[str, Any]) -> None:
        if self._exists(f"queue {name!r}", lambda c: c.queue_declare(name, passive=True)):
            self._compare(lambda: super(_Verify, self).queue(name, arguments))

    def bind(self, queue: str, exchange: str, key: str, arguments: dict[str, Any] | None = None) -> None:
        """AMQP cannot look for bindings."""

    def bind_exchange(self, to: str, exchange: str, key: str, arguments: dict[str, Any] | None = None) -> None:
        """AMQP cannot look for bindings."""

    def _exists(self, what: str, look: Callable[[Any], Any]) -> bool:
        try:
            look(self._fresh())
        except NotFound:
            self._missing.append(what)
            return False
        return True

    def _compare(self, declare: Callable[[], None]) -> None:
        self._fresh()
        with contextlib.suppress(AccessRefused):  # may not declare, so cannot compare either
            declare()

    def _fresh(self) -> Any:
        """Return a new channel: the broker closes one on which something was missing."""
        self._channel = self._connection.channel()
        return self._channel

    def finish(self) -> None:
        if self._missing:
            raise TopologyError(f"missing at the broker: {', '.join(dict.fromkeys(self._missing))}")


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Say which declaration differs."""
    try:
        yield
    except PreconditionFailed as exc:
        raise TopologyError(f"{what} exists with other properties: {reason(exc)}") from exc
    except NotFound as exc:
        raise TopologyError(f"{what}: {reason(exc)}") from exc
