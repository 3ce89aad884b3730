"""A real server for all tests, a prefix of its own for each, and adapters that are closed at the end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest

from msgbus.adapter import (
    ID,
    KEY,
    Ack,
    AdapterConfig,
    Address,
    BusURL,
    Kind,
    Outgoing,
    Provision,
    Received,
    Source,
    SubscribeOptions,
    Subscription,
    Topology,
)
from msgbus.errors import BrokerUnavailable
from msgbus_nats import NatsAdapter
from scripts.brokers import Broker
from scripts.brokers.fixtures import require_broker


class _Plain(nats.NATS):
    async def flush(self, timeout: int = 10) -> None:
        """Flush twice: the first PING goes past nats-py's own buffer, and may be there before what was written."""
        await super().flush(timeout)
        await super().flush(timeout)


class Kit:
    """What the tests of one file need.

    Args:
        broker: The server.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.prefix = f"t{secrets.token_hex(4)}"
        self.url = broker.url
        self._count = 0

    def run(self, test: Coroutine[Any, Any, None], within: float = 60) -> None:
        asyncio.run(asyncio.wait_for(test, within))

    @asynccontextmanager
    async def adapter(
        self, *declare: Address | Source, provision: Provision = Provision.CREATE, url: str = "", query: str = ""
    ) -> AsyncIterator[NatsAdapter]:
        target = BusURL.parse(f"{url or self.url}?prefix={self.prefix}{query}")
        adapter = NatsAdapter(target, AdapterConfig(service="test", provision=provision))
        await adapter.open()
        try:
            await adapter.declare(
                Topology(
                    tuple(item for item in declare if isinstance(item, Address)),
                    tuple(item for item in declare if isinstance(item, Source)),
                )
            )
            yield adapter
        finally:
            await adapter.aclose()

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[nats.NATS]:
        """A client that knows nothing of msgbus."""
        client = _Plain()
        await client.connect(self.broker.url)
        try:
            yield client
        finally:
            await client.close()

    @staticmethod
    async def until(condition: Callable[[], Any], within: float = 20.0) -> Any:
        """Return the value of *condition*, which may be async, once it is true."""
        async with asyncio.timeout(within):
            while True:
                value = condition()
                if isinstance(value, Awaitable):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.01)

    @staticmethod
    async def consumer(adapter: NatsAdapter, source: Source, **options: Any) -> Subscription:
        return await adapter.subscribe(source, SubscribeOptions(**options))

    def message(self, target: Address | Source, text: str, key: str | None = None, **more: Any) -> Outgoing:
        self._count += 1
        identity = more.pop("id", f"id-{self._count}")
        headers = {ID: identity, **({KEY: key} if key else {}), **more.pop("headers", {})}
        return Outgoing(target, text.encode(), headers, identity, key, **more)

    async def publish(self, adapter: NatsAdapter, *messages: Outgoing) -> None:
        assert [None] * len(messages) == list(await adapter.publish(messages))

    async def receive(self, subscription: Subscription, count: int, within: float = 20.0) -> list[Received]:
        """Receive exactly *count* messages."""
        got: list[Received] = []
        async with asyncio.timeout(within):
            while len(got) < count:
                try:
                    got += await subscription.receive(count - len(got), 1)
                except BrokerUnavailable:
                    await asyncio.sleep(0.05)
        return got

    @staticmethod
    def texts(received: Sequence[Received]) -> list[str]:
        return [message.body.decode() for message in received]

    @staticmethod
    async def ack(subscription: Subscription, received: Sequence[Received]) -> None:
        assert [None] * len(received) == list(await subscription.settle([Ack(message) for message in received]))

    @staticmethod
    def queue(name: str = "orders", *, keyed: bool = False, **native: Any) -> Address:
        return Address(Kind.QUEUE, name, keyed, native)

    @staticmethod
    def topic(name: str = "order.placed", *, keyed: bool = False, **native: Any) -> Address:
        return Address(Kind.TOPIC, name, keyed, native)


@pytest.fixture(scope="session")
def nats_server():
    with require_broker("nats") as broker:
        yield broker


@pytest.fixture
def kit(nats_server):
    return Kit(nats_server)


@pytest.fixture
def own_kit():
    """A kit whose server may be stopped, killed and cut off."""
    with require_broker("nats") as broker:
        if not broker.controllable:
            pytest.skip("needs a server of its own")
        yield Kit(broker)
