"""A real RabbitMQ for the session, and adapters on it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

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
from msgbus.errors import BrokerUnavailable, PublishError
from msgbus_rabbitmq import RabbitMQAdapter
from scripts.brokers.fixtures import brokers

__all__ = ["brokers"]

PATIENCE = 60.0
"""Seconds until something that must happen is given up: many, for they cost nothing where it does."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: value for name, value in pyfuncitem.funcargs.items() if name in wanted}
    asyncio.run(pyfuncitem.obj(**arguments), debug=False)
    return True


@pytest.fixture
def broker(brokers: Any) -> Any:
    """Return a running RabbitMQ."""
    return brokers("rabbitmq")


class Rig:
    """Unique names, adapters, and the few moves that every test makes."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        self._run = secrets.token_hex(4)
        self._count = itertools.count(1)

    def name(self, prefix: str = "q") -> str:
        return f"{prefix}-{self._run}-{next(self._count)}"

    def queue(self, **options: Any) -> Source:
        return Source(Address(Kind.QUEUE, self.name(), **options))

    def topic(self, group: str = "group", **options: Any) -> Source:
        return Source(Address(Kind.TOPIC, self.name("t"), **options), group)

    @asynccontextmanager
    async def adapter(
        self, *sources: Source, options: str = "", url: str = "", provision: Provision = Provision.CREATE
    ) -> AsyncIterator[RabbitMQAdapter]:
        config = AdapterConfig(service="test", instance=secrets.token_hex(4), provision=provision, connect_timeout=30)
        adapter = RabbitMQAdapter(BusURL.parse((url or self.broker.url) + options), config)
        await adapter.open()
        try:
            if sources:
                await adapter.declare(Topology(tuple(s.address for s in sources), sources))
            yield adapter
        finally:
            await adapter.aclose()

    def message(self, source: Source | Address, text: str, *, key: str | None = None, delay: float = 0.0) -> Outgoing:
        address = source.address if isinstance(source, Source) else source
        headers = {ID: f"id-{text}", "ce-specversion": "1.0", "ce-type": "Text", "content-type": "text/plain"}
        if key is not None:
            headers[KEY] = key
        return Outgoing(address, text.encode(), headers, headers[ID], key, delay)

    async def publish(self, adapter: RabbitMQAdapter, source: Source, *texts: str, **options: Any) -> None:
        results = await adapter.publish([self.message(source, text, **options) for text in texts])
        assert [None] * len(texts) == list(results)


@pytest.fixture
def rig(broker: Any) -> Rig:
    return Rig(broker)


def subscribe(adapter: RabbitMQAdapter, source: Source, prefetch: int = 64) -> Awaitable[Subscription]:
    return adapter.subscribe(source, SubscribeOptions(prefetch=prefetch))


async def receive(subscription: Subscription, count: int, patience: float = PATIENCE) -> list[Received]:
    """Receive *count* messages, however long a repair takes."""
    got: list[Received] = []
    async with asyncio.timeout(patience):
        while len(got) < count:
            try:
                got += await subscription.receive(count - len(got), 1.0)
            except BrokerUnavailable:
                await asyncio.sleep(0.02)
    return got


async def take(subscription: Subscription, count: int, patience: float = PATIENCE) -> list[str]:
    """Receive and ack *count* messages; return their texts."""
    got = await receive(subscription, count, patience)
    assert [None] * count == list(await subscription.settle([Ack(message) for message in got]))
    return [message.body.decode() for message in got]


async def nothing(subscription: Subscription, seconds: float = 0.4) -> None:
    """Check that nothing arrives for *seconds*."""
    assert list(await subscription.receive(100, seconds)) == []


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Wait until *condition* (plain or async) holds."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                result = condition()
                if await result if inspect.isawaitable(result) else result:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE:g} s: {what}")


async def persist(adapter: RabbitMQAdapter, messages: Sequence[Outgoing]) -> list[PublishError | None]:
    """Publish as the core does: again, while an error says that this helps."""
    results: dict[int, PublishError | None] = {}
    async with asyncio.timeout(3 * PATIENCE):
        while len(results) < len(messages):
            left = [i for i in range(len(messages)) if i not in results]
            try:
                errors = await adapter.publish([messages[i] for i in left])
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
                continue
            for index, error in zip(left, errors, strict=True):
                if error is None or not error.retryable:
                    results[index] = error
    return [results[i] for i in range(len(messages))]
