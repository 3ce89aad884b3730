"""The contract for brokers: what an adapter implements, and the structures that cross the line.

An adapter speaks to one broker. It publishes batches and returns what became of each message, hands out received
messages in batches when it is asked to (the core owns concurrency and back-pressure), and settles them in batches.
It knows nothing of payload types, handlers, retry policies or idempotency: those are the core's.

An adapter package imports `msgbus.adapter`, `msgbus.store` and `msgbus.errors` only, and registers its class under
its URL scheme in the entry-point group ``msgbus.adapters``. `docs/write-an-adapter.md` builds one step by step;
`msgbus.testing.AdapterContract` proves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal

from msgbus._message import (
    ATTEMPTS,
    CONTENT_TYPE,
    CORRELATION_ID,
    DEAD,
    ERROR,
    EXPIRES,
    ID,
    KEY,
    REPLY_TO,
    SOURCE,
    TIME,
    TYPE,
)
from msgbus._names import escape_name, is_pattern, match_name, pattern_regex, unescape_name
from msgbus._time import Clock, SystemClock
from msgbus._url import BusURL, parse_options
from msgbus._wire import Ack, Address, DeadLetter, Kind, Nack, Outcome, Outgoing, Received, Source
from msgbus.errors import PublishError, SettleError, UnsupportedFeature

__all__ = [
    "ATTEMPTS",
    "CONTENT_TYPE",
    "CORRELATION_ID",
    "DEAD",
    "ERROR",
    "EXPIRES",
    "ID",
    "KEY",
    "REPLY_TO",
    "SOURCE",
    "TIME",
    "TYPE",
    "Ack",
    "Adapter",
    "AdapterConfig",
    "Address",
    "BusURL",
    "Capabilities",
    "Clock",
    "DeadLetter",
    "Health",
    "Kind",
    "Nack",
    "Outcome",
    "Outgoing",
    "Provision",
    "Received",
    "Source",
    "Start",
    "Stats",
    "SubscribeOptions",
    "Subscription",
    "SystemClock",
    "Topology",
    "escape_name",
    "is_pattern",
    "match_name",
    "parse_options",
    "pattern_regex",
    "unescape_name",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an adapter does natively. What is not declared is refused by name at start-up, never approximated.

    Attributes:
        groups: Topics, and consumer groups on them.
        patterns: Subscriptions over a pattern of topic names.
        order: What is received in the order it was published: ``none``; ``queue``, with one consumer; ``key``,
            messages of one key on keyed addresses, across all consumers of the source.
        competing: Consumers of a source compete for each message, so what one has no room for goes to another;
            False where each of them owns a part of the source (Kafka's partitions) until it leaves.
        park_keys: A dead letter can hold back the later messages of its key.
        max_delay: The longest delay of a publish or a nack, in seconds; 0 where neither is possible.
        delivery_count: Whether `Received.deliveries` is ``exact``, ``approximate`` (it also counts messages given
            back untried) or ``none``.
        lease: Whether a received message returns by itself after a while: ``none`` (with the connection only),
            ``fixed``, or ``renewable`` by `Subscription.extend`.
        replay: `SubscribeOptions.start` works: a position, a time, or the earliest message.
        browse: `Adapter.browse` works, without disturbing consumers.
        remove: `Adapter.remove` works, so that a temporary group leaves nothing behind.
        unroutable: Publishing to a queue that does not exist is noticed.
        dedupe_window: For so many seconds the broker drops a second message with the same id; 0 for never.
        durable: What was confirmed survives a restart of the broker.
        provision: `Adapter.declare` can create what is missing.
        requests: How requests work: by ``channels`` (REQUEST and REPLY addresses are queues), ``native``, ``none``.
        multi_process: Several processes can share a source.
        ttl: The broker itself drops what has expired.
        priority: ``native={"priority": …}`` on messages.
        max_body: The largest body in bytes.
        max_batch: The most messages of one `Adapter.publish`.
        max_settle: The most outcomes of one `Subscription.settle`.
        publish_window: How many `Adapter.publish` calls may run at once to good effect; 1 for a single writer.
    """

    groups: bool = True
    patterns: bool = False
    order: Literal["none", "queue", "key"] = "none"
    competing: bool = True
    park_keys: bool = False
    max_delay: float = 0.0
    delivery_count: Literal["none", "approximate", "exact"] = "none"
    lease: Literal["none", "fixed", "renewable"] = "none"
    replay: bool = False
    browse: bool = False
    remove: bool = False
    unroutable: bool = False
    dedupe_window: float = 0.0
    durable: bool = True
    provision: bool = True
    requests: Literal["channels", "native", "none"] = "channels"
    multi_process: bool = True
    ttl: bool = False
    priority: bool = False
    max_body: int = 256 * 1024
    max_batch: int = 1000
    max_settle: int = 1000
    publish_window: int = 1


class Provision(StrEnum):
    """Whether an application may create what it uses (``MSGBUS_TOPOLOGY``)."""

    CREATE = "create"
    """Create what is missing; what exists and differs is an error."""
    VERIFY = "verify"
    """Create nothing; what is missing or differs is an error."""
    SKIP = "skip"
    """Neither create nor look."""


@dataclass(frozen=True, slots=True)
class Topology:
    """What a bus needs to exist: addresses to publish to, sources to consume (each with its dead letters)."""

    addresses: tuple[Address, ...] = ()
    sources: tuple[Source, ...] = ()


Start = Literal["earliest", "latest"] | datetime | int
"""Where a subscription begins: the first or the next message, a time, or a position in the broker's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeOptions:
    """How a source is consumed.

    Attributes:
        prefetch: The most messages this consumer may hold unsettled.
        lease: For how many seconds a received message stays ours unless extended (where the adapter has leases).
        start: Where to begin, or None for where the group left off (``Capabilities.replay``).
    """

    prefetch: int = 64
    lease: float = 30.0
    start: Start | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """A snapshot of one source. None stands for what the broker cannot tell.

    Attributes:
        ready: Messages that can be received now.
        in_flight: Messages received and not settled.
        delayed: Messages waiting for their delay to pass.
        dead: Dead letters.
        oldest_age: Age of the oldest ready message in seconds.
        next_due: When the next delayed message or leased one comes due, in seconds since 1970.
    """

    ready: int | None = None
    in_flight: int | None = None
    delayed: int | None = None
    dead: int | None = None
    oldest_age: float | None = None
    next_due: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether an adapter can reach its broker.

    Attributes:
        ok: True when it is connected.
        reason: Why not, without credentials.
    """

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What the bus tells every adapter and store.

    Attributes:
        clock: The only source of time an adapter may use for anything a message can see (delays, leases, ages).
        service: The application's name, for connection names.
        instance: Unique to this bus object: part of lease tokens and reply addresses.
        provision: Whether `Adapter.declare` creates.
        connect_timeout: Seconds `Adapter.open` may take.
    """

    clock: Clock = field(default_factory=SystemClock)
    service: str = "msgbus"
    instance: str = "local"
    provision: Provision = Provision.CREATE
    connect_timeout: float = 10.0


class Adapter(ABC):
    """One broker. Made from a URL, used by one event loop; all methods may be called concurrently.

    Errors: what the client library raises is translated by the adapter's ``_errors.py``, with the original as
    ``__cause__``. `msgbus.errors.BrokerUnavailable` means nothing of the call took effect; the core retries it.

    Cancellation: every method may be cancelled at any point; the adapter stays usable and loses no message.
    """

    name: ClassVar[str]
    """The adapter's name in errors and tables: its URL scheme."""
    capabilities: Capabilities

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        self.url = url
        self.config = config
        self.health = Health(False, "not opened")

    @property
    def raw(self) -> Any:
        """The client library's own connection or client, for what only this broker can do."""
        return None

    @abstractmethod
    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: The broker cannot be reached within ``config.connect_timeout``.
            AccessDenied: It refused the credentials.
        """

    @abstractmethod
    async def declare(self, topology: Topology) -> None:
        """Create, verify or skip (``config.provision``) what *topology* names. Idempotent.

        A declared group misses nothing that is published from then on, connected or not. Each source's dead letters
        are part of it.

        Raises:
            TopologyError: Something is missing (verify), or differs; says what.
            ChannelError: A name cannot be mapped to the broker's alphabet.
        """

    @abstractmethod
    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        """Publish up to ``capabilities.max_batch`` messages; return once the broker has confirmed or refused each.

        Returns:
            For each message, in order, None (confirmed: durable as far as the broker promises) or that message's
            own error: a `NotSent` only where the broker certainly does not have it, a `ConfirmLost` where that is
            unknown. An error with ``retryable`` set is retried by the core with the same id.

        Raises:
            BrokerUnavailable: No message of the batch was sent.
        """

    def post(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        """Send one message at once, if that is possible without waiting for anything.

        A short cut past `publish`, whose batches, tasks and turns of the event loop show where one message is all
        there is: a request, say. An adapter that gains nothing by it does not have it.

        Args:
            outgoing: The message.
            done: Called exactly once, in a later turn, with what `publish` would return for the message. It must not
                raise.

        Returns:
            False if the message was not taken: then *done* is never called, and the core calls `publish`.
        """
        return False

    @abstractmethod
    async def subscribe(self, source: Source, options: SubscribeOptions) -> Subscription:
        """Start consuming *source* (which was declared, but for REPLY addresses: those are made here)."""

    @abstractmethod
    async def stats(self, source: Source) -> Stats:
        """Return a snapshot of *source*."""

    async def browse(self, source: Source, *, limit: int, after: str | None = None) -> Sequence[Received]:
        """Return up to *limit* messages in order without receiving them (``capabilities.browse``).

        Args:
            source: A source, usually one of dead letters.
            limit: The most messages to return.
            after: The ``position`` (as text) of the last message of the page before, or None for the first page.
        """
        raise UnsupportedFeature(self.name, "browse")

    async def remove(self, source: Source) -> None:
        """Remove *source* with its messages and dead letters (``capabilities.remove``); nobody consumes it any more.

        Of a topic only the group goes. Removing what does not exist does nothing.
        """
        raise UnsupportedFeature(self.name, "remove")

    @abstractmethod
    async def aclose(self) -> None:
        """Close everything, subscriptions too. Idempotent; closes even when it fails."""


class Subscription(ABC):
    """One consumer on one source."""

    address: str = ""
    """On a REPLY source: the name others publish answers to."""
    deliver: Callable[[Received], bool] | None = None
    """Set by the core, to be offered a message the moment it comes in, where nothing waits before it.

    It is a short cut past `receive`, which an adapter need not take. True says that the message is taken, as if
    `receive` had returned it; on a REPLY source it is settled by that, too. False leaves it to `receive`.
    """

    @abstractmethod
    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """Return between 1 and *limit* messages as soon as there are any, or none after *wait* seconds.

        Called by one task at a time. Cancelling it loses nothing: what arrived is returned by the next call, or
        becomes available to others. What it returns after a `settle` call has returned reflects that call.

        On a keyed address several messages of one key may be returned, in order; while any of them is unsettled
        the key's later messages go to no other subscription.

        Raises:
            BrokerUnavailable: The connection is lost; the core calls again after a pause, and the adapter must
                have repaired itself by then.
        """

    @abstractmethod
    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """Settle messages of this subscription, in any order, up to ``capabilities.max_settle`` at once.

        On a keyed address, nacked messages of one key come back in the order they were received; the ones after
        a delayed one wait for it.

        Returns:
            For each outcome, in order, None once the broker has taken it, or that message's own error
            (`LeaseLost` when it is somebody else's by now; settling must not disturb the new owner).
        """

    async def extend(self, received: Sequence[Received], seconds: float) -> Sequence[SettleError | None]:
        """Keep the leases of *received* for *seconds* more from now (``lease="renewable"``).

        Returns:
            For each message, in order, None or `LeaseLost`.
        """
        return [None] * len(received)

    @abstractmethod
    async def aclose(self) -> None:
        """Stop consuming. What is unsettled becomes available to others at once. Idempotent."""
