"""The adapter of the memory broker: the model of `_broker`, waited for on the injected clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from msgbus.adapter import (
    Adapter,
    AdapterConfig,
    BusURL,
    Capabilities,
    Health,
    Kind,
    Outcome,
    Outgoing,
    Received,
    Source,
    Stats,
    SubscribeOptions,
    Subscription,
    Topology,
    parse_options,
)
from msgbus.errors import ClosedError, ConfigError, PublishError, SettleError, UnsupportedFeature
from msgbus_memory._boxes import Consumer
from msgbus_memory._broker import MAX_BODY, Broker, named_broker

if TYPE_CHECKING:
    from msgbus.adapter import Address

__all__ = ["MemoryAdapter", "name_of"]


@dataclass(frozen=True, slots=True)
class _Options:
    """The memory broker has no options; the type is there to refuse the unknown ones by name."""


def name_of(url: BusURL) -> str:
    """Return the name in ``memory://name``, or an empty one.

    Raises:
        ConfigError: The URL has more than a name.
    """
    parse_options(url, _Options)
    if len(url.hosts) > 1 or any(port for _, port in url.hosts) or url.path.strip("/"):
        raise ConfigError(f"a memory URL is memory:// or memory://name, got {url}")
    return url.hosts[0][0] if url.hosts else ""


class MemoryAdapter(Adapter):
    """Messages in the memory of this process: for tests, and the model the other adapters are compared with."""

    name = "memory"
    capabilities = Capabilities(
        patterns=True,
        order="key",
        park_keys=True,
        max_delay=timedelta(days=3650).total_seconds(),
        delivery_count="exact",
        lease="renewable",
        browse=True,
        remove=True,
        unroutable=True,
        durable=False,
        multi_process=False,
        max_body=MAX_BODY,
    )

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        name = name_of(url)
        self._broker = named_broker(name) if name else Broker()
        self._subscriptions: set[_MemorySubscription] = set()

    @property
    def raw(self) -> Any:
        """The broker model itself."""
        return self._broker

    async def open(self) -> None:
        """Open for use."""
        self.health = Health(True)

    async def declare(self, topology: Topology) -> None:
        """Create, verify or skip what *topology* names."""
        self._check_open()
        self._broker.declare(topology, self.config.provision)

    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        """Publish messages."""
        self._check_open()
        return self._broker.publish(batch, self.config.clock.now())

    async def subscribe(self, source: Source, options: SubscribeOptions) -> Subscription:
        """Start consuming *source*."""
        self._check_open()
        if options.start is not None:
            raise UnsupportedFeature(self.name, "replay", "messages are gone once they are acked")
        subscription = _MemorySubscription(self, source, options)
        self._subscriptions.add(subscription)
        return subscription

    async def stats(self, source: Source) -> Stats:
        """Return a snapshot of *source*."""
        self._check_open()
        return self._broker.box(source).stats(self.config.clock.now())

    async def browse(self, source: Source, *, limit: int, after: str | None = None) -> Sequence[Received]:
        """Return messages in order, in whatever state they are, without receiving them."""
        self._check_open()
        return self._broker.box(source).browse(limit, int(after or 0))

    async def remove(self, source: Source) -> None:
        """Remove *source* with its messages and dead letters."""
        self._check_open()
        self._broker.remove(source)

    async def aclose(self) -> None:
        """Close all subscriptions. What is in a named broker stays as long as another adapter uses it."""
        self.health = Health(False, "closed")
        for subscription in list(self._subscriptions):
            await subscription.aclose()

    def _check_open(self) -> None:
        if not self.health.ok:
            raise ClosedError(f"the memory adapter is {self.health.reason}")


class _MemorySubscription(Subscription):
    """One consumer of one box."""

    def __init__(self, adapter: MemoryAdapter, source: Source, options: SubscribeOptions) -> None:
        self._adapter = adapter
        self._broker: Broker = adapter.raw
        self._clock = adapter.config.clock
        self._reply: Address | None = None
        if source.address.kind is Kind.REPLY:
            self._reply = self._broker.create_reply(source.address.name)
            source = Source(self._reply)
            self.address = self._reply.name
        self._name = str(source)
        box = self._broker.box(source)
        self._consumer = Consumer(box, options.prefetch, options.lease)
        box.consumers[self._consumer] = None
        self._closed = False

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """Return messages as soon as there are any, or none after *wait* seconds of the injected clock."""
        # A consumer that always finds something must not keep all other tasks from running.
        await asyncio.sleep(0)
        deadline = self._clock.now() + wait
        while not self._closed:
            now = self._clock.now()
            received = self._consumer.take(limit, now)
            if received or now >= deadline:
                return received
            await self._wait(min(deadline, self._consumer.box.next_look()) - now)
        raise ClosedError(f"the subscription to {self._name} is closed")

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """Settle messages."""
        now = self._clock.now()
        self._consumer.box.tick(now)
        return [self._consumer.settle(outcome, now) for outcome in outcomes]

    async def extend(self, received: Sequence[Received], seconds: float) -> Sequence[SettleError | None]:
        """Keep leases."""
        now = self._clock.now()
        self._consumer.box.tick(now)
        return [self._consumer.extend(message, seconds, now) for message in received]

    async def aclose(self) -> None:
        """Give everything back and leave."""
        if self._closed:
            return
        self._closed = True
        self._consumer.close(self._clock.now())
        if self._consumer.wake is not None:
            self._consumer.wake()
        if self._reply is not None:
            self._broker.remove_reply(self._reply)
        self._adapter._subscriptions.discard(self)  # noqa: SLF001 - the two are one thing in two classes

    async def _wait(self, seconds: float) -> None:
        """Return when the box calls or *seconds* have passed, whichever is first."""
        called = asyncio.Event()
        self._consumer.wake = called.set
        sleeper = asyncio.ensure_future(self._clock.sleep(seconds))
        sleeper.add_done_callback(lambda _: called.set())
        try:
            await called.wait()
        finally:
            self._consumer.wake = None
            sleeper.cancel()
        if sleeper.done() and not sleeper.cancelled():
            sleeper.result()
