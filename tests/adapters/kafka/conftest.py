"""A real Kafka, adapters on it, and the few verbs that the tests are written in."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from msgbus.adapter import (
    ID,
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
from msgbus_kafka import KafkaAdapter
from scripts.brokers.fixtures import brokers

__all__ = ["brokers"]

DEADLINE = 240.0
"""Generous, like all that follow: they cost nothing where all is well, and the machine may be busy."""


class Kit:
    """What the tests of one file need."""

    def __init__(self, broker):
        self.broker = broker
        self.servers = f"127.0.0.1:{broker.port}"
        self._count = 0

    def run(self, test, timeout=DEADLINE):
        asyncio.run(asyncio.wait_for(test, timeout))

    @asynccontextmanager
    async def adapter(self, *declare, partitions=4, query="", url=None, provision=Provision.CREATE, service="tests"):
        text = f"{url or self.broker.url}?partitions={partitions}&session_timeout=6{query}"
        config = AdapterConfig(service=service, instance=secrets.token_hex(4), provision=provision)
        adapter = KafkaAdapter(BusURL.parse(text), config)
        await adapter.open()
        try:
            await self.declare(adapter, *declare)
            yield adapter
        finally:
            await adapter.aclose()

    @staticmethod
    async def declare(adapter, *declare):
        addresses = tuple(item for item in declare if isinstance(item, Address))
        sources = tuple(item for item in declare if isinstance(item, Source))
        await adapter.declare(Topology(addresses, sources))

    @staticmethod
    def name(what="n"):
        return f"{what}-{secrets.token_hex(5)}"

    def queue(self, *, keyed=False, **native):
        return Source(Address(Kind.QUEUE, self.name("queue"), keyed, native))

    def topic(self, *groups, keyed=False, **native):
        address = Address(Kind.TOPIC, self.name("topic"), keyed, native)
        return [Source(address, group) for group in groups]

    def message(self, target, body, key=None, **more):
        self._count += 1
        identity = more.pop("id", f"id-{self._count}")
        body = body if isinstance(body, bytes) else str(body).encode()
        return Outgoing(target, body, {ID: identity, **more.pop("headers", {})}, identity, key, **more)

    async def publish(self, adapter, *messages):
        assert [None] * len(messages) == list(await adapter.publish(messages))

    @staticmethod
    async def subscribe(adapter, source, **options):
        return await adapter.subscribe(source, SubscribeOptions(**options))

    @staticmethod
    async def take(subscription, count, within=90.0):
        got, deadline = [], time.monotonic() + within
        while len(got) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(got)} of {count} messages came in {within} s: {[m.body[:20] for m in got[-5:]]}"
            got += await subscription.receive(count - len(got), min(left, 0.5))
        return got

    async def drain(self, subscription, count, within=90.0):
        got = await self.take(subscription, count, within)
        assert [None] * count == list(await subscription.settle([Ack(message) for message in got]))
        return got

    @staticmethod
    async def until(condition, within=90.0):
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it never became true"
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def admin(self):
        client = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await client.start()
        try:
            yield client
        finally:
            await client.close()

    @asynccontextmanager
    async def producer(self, **options):
        client = AIOKafkaProducer(bootstrap_servers=self.servers, **options)
        await client.start()
        try:
            yield client
        finally:
            await client.stop()

    @asynccontextmanager
    async def consumer(self, *topics, **options):
        options = {"auto_offset_reset": "earliest", "enable_auto_commit": False, **options}
        client = AIOKafkaConsumer(*topics, bootstrap_servers=self.servers, **options)
        await client.start()
        try:
            yield client
        finally:
            await client.stop()


@pytest.fixture
def kit(brokers):
    return Kit(brokers("kafka"))
