"""Servers for all tests, names of its own for each, and adapters that are closed at the end."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager

import boto3
import pytest
from botocore.config import Config

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
    Source,
    SubscribeOptions,
    Topology,
)
from msgbus.errors import BrokerUnavailable
from msgbus_aws import SqsAdapter
from scripts.brokers.fixtures import brokers

__all__ = ["brokers"]

PATIENCE = 30.0


@pytest.fixture(scope="session", autouse=True)
def credentials():
    """The servers check none, and boto3 refuses to work without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        patch.delenv("AWS_PROFILE", raising=False)
        yield


class Kit:
    """What the tests need of one server."""

    def __init__(self, broker):
        self.broker = broker
        self.prefix = f"t{secrets.token_hex(4)}"
        self._count = 0

    def run(self, test, within=60):
        asyncio.run(asyncio.wait_for(test, within))

    def url(self, query="", proxy=None):
        url = self.broker.url_through(proxy) if proxy else self.broker.url
        return f"{url}&wait=1&timeout=5{query}"

    def client(self, service="sqs"):
        """An ordinary client that knows nothing of us."""
        return boto3.client(
            service,
            endpoint_url=self.broker.endpoint,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 2}),
        )

    def queue(self, name="orders", *, keyed=False, **native):
        return Address(Kind.QUEUE, f"{self.prefix}.{name}", keyed, native)

    def topic(self, name="placed", *, keyed=False, **native):
        return Address(Kind.TOPIC, f"{self.prefix}.{name}", keyed, native)

    def queue_url(self, name):
        """The URL of a queue by what follows the prefix in its name."""
        return self.client().get_queue_url(QueueName=f"{self.prefix}_2e{name}")["QueueUrl"]

    def topology(self, *declare):
        return Topology(
            tuple(d for d in declare if isinstance(d, Address)), tuple(d for d in declare if isinstance(d, Source))
        )

    @asynccontextmanager
    async def adapter(self, *declare, provision=Provision.CREATE, query="", proxy=None, clock=None):
        extra = {"clock": clock} if clock else {}
        adapter = SqsAdapter(
            BusURL.parse(self.url(query, proxy)), AdapterConfig(service="test", provision=provision, **extra)
        )
        await adapter.open()
        try:
            await adapter.declare(self.topology(*declare))
            yield adapter
        finally:
            await adapter.aclose()

    def message(self, target, body=b"x", *, key=None, headers=None, delay=0.0, id=None):
        self._count += 1
        id = id or f"id-{self._count}"
        wire = {ID: id, **(headers or {})}
        if key is not None:
            wire[KEY] = key
        return Outgoing(target, body.encode() if isinstance(body, str) else body, wire, id, key, delay)

    async def publish(self, adapter, *messages):
        results = list(await adapter.publish(messages))
        assert results == [None] * len(messages)

    async def consumer(self, adapter, source, prefetch=10, lease=30.0):
        return await adapter.subscribe(source, SubscribeOptions(prefetch=prefetch, lease=lease))

    async def receive(self, subscription, count, within=PATIENCE):
        got = []
        async with asyncio.timeout(within):
            while len(got) < count:
                try:
                    got += await subscription.receive(count - len(got), 1.0)
                except BrokerUnavailable:
                    await asyncio.sleep(0.1)
        return got

    async def ack(self, subscription, received):
        assert list(await subscription.settle([Ack(r) for r in received])) == [None] * len(received)

    async def eventually(self, condition, within=PATIENCE):
        async with asyncio.timeout(within):
            while not (value := condition()):  # noqa: ASYNC110 - the server has no event to wait for
                await asyncio.sleep(0.02)
        return value


@pytest.fixture
def kit(brokers):
    return Kit(brokers("ministack"))


@pytest.fixture
def moto(brokers):
    return Kit(brokers("moto"))


@pytest.fixture(params=["moto", "fauxqs"])
def s3kit(request, brokers):
    return Kit(brokers(request.param))
