"""The Kafka adapter keeps the contract, on a real Apache Kafka."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from msgbus.testing import AdapterContract, Harness
from scripts.brokers.fixtures import brokers

__all__ = ["brokers"]


class KafkaHarness(Harness):
    """A broker of our own, reached through a proxy that can be cut."""

    def __init__(self, broker, proxy):
        super().__init__(url=broker.url_through(proxy) + "?partitions=4&session_timeout=6", patience=2.0)
        self._broker = broker
        self._proxy = proxy

    async def inject_raw(self, address, body, headers):
        producer = AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{self._broker.port}")
        await producer.start()
        try:
            await producer.send_and_wait(
                address.name, body, headers=[(name, value.encode()) for name, value in headers.items()]
            )
        finally:
            await producer.stop()

    async def restart(self):
        await asyncio.to_thread(self._broker.restart)

    async def kill(self):
        await asyncio.to_thread(self._broker.kill)
        await asyncio.to_thread(self._broker.start)

    async def fill(self, address):
        # A compacted topic takes no message without a key.
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self._broker.port}")
        await admin.start()
        try:
            policy = {"cleanup.policy": "compact"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, address.name, policy)])
        finally:
            await admin.close()

    async def cut(self):
        await asyncio.to_thread(self._proxy.cut)

    async def pause(self):
        await asyncio.to_thread(self._proxy.stall)

    async def heal(self):
        await asyncio.to_thread(self._proxy.heal)


@pytest.fixture(scope="module")
def proxied(brokers):
    broker = brokers("kafka")
    with broker.proxy() as proxy:
        yield broker, proxy


class TestKafkaAdapter(AdapterContract):
    @pytest.fixture
    def harness(self, proxied, brokers):
        brokers("kafka")  # runs again, should the check before have left it dead
        return KafkaHarness(*proxied)
