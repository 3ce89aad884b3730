"""The NATS adapter keeps the contract, on a real server that is restarted, killed, paused and cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import nats
import pytest

from msgbus.adapter import Address, Kind
from msgbus.testing import AdapterContract, Harness
from scripts.brokers import Broker
from scripts.brokers.fixtures import require_broker


def subject_of(address: Address) -> str:
    return f"msgbus.{address.kind}.{address.name}"


class NatsHarness(Harness):
    """A server behind a proxy."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.proxy = broker.proxy()
        super().__init__(url=broker.url_through(self.proxy), tick=0.2, lease=4.0)

    async def inject_raw(self, address: Address, body: bytes, headers: Mapping[str, str]) -> None:
        client = await nats.connect(self.broker.url)
        if address.kind is Kind.REQUEST:
            await client.publish(subject_of(address), body, headers=dict(headers) or None)
        else:
            await client.jetstream().publish(subject_of(address), body, headers=dict(headers) or None)
        await client.close()

    async def restart(self) -> None:
        await asyncio.to_thread(self.broker.restart)

    async def kill(self) -> None:
        await asyncio.to_thread(self.broker.kill)
        await asyncio.to_thread(self.broker.start)

    async def cut(self) -> None:
        await asyncio.to_thread(self.proxy.cut)

    async def pause(self) -> None:
        await asyncio.to_thread(self.proxy.stall)

    async def heal(self) -> None:
        await asyncio.to_thread(self.proxy.heal)

    async def fill(self, address: Address) -> None:
        """Put a stream in its place that an operator has bounded, and that is full."""
        client = await nats.connect(self.broker.url)
        jetstream = client.jetstream()
        name = await jetstream.find_stream_name_by_subject(subject_of(address))
        await jetstream.delete_stream(name)
        await jetstream.add_stream(name=name, subjects=[subject_of(address)], max_msgs=1, discard="new")
        await jetstream.publish(subject_of(address), b"the one that fits")
        await client.close()


@pytest.fixture(scope="module")
def server():
    with require_broker("nats") as broker:
        yield broker


class TestNatsAdapter(AdapterContract):
    @pytest.fixture
    def harness(self, server):
        harness = NatsHarness(server)
        yield harness
        harness.proxy.close()
        if server.controllable:
            server.start()
