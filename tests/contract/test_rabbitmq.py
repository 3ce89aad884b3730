"""The RabbitMQ adapter keeps the contract, on a real RabbitMQ that is restarted, killed, paused and cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import kombu
import pytest

from msgbus.adapter import Address
from msgbus.testing import AdapterContract, Harness
from msgbus.testing.faults import FaultProxy
from scripts.brokers import Broker, BrokerMissing, start


class RabbitHarness(Harness):
    """RabbitMQ behind a proxy that breaks connections."""

    def __init__(self, broker: Broker, proxy: FaultProxy) -> None:
        super().__init__(url=f"amqp://guest:guest@{proxy.host}:{proxy.port}/?heartbeat=2", tick=0.2)
        self._broker = broker
        self._proxy = proxy

    async def inject_raw(self, address: Address, body: bytes, headers: Mapping[str, str]) -> None:
        with kombu.Connection(self._broker.url) as connection:
            await asyncio.to_thread(
                connection.Producer().publish,
                body,
                routing_key=address.name,
                headers=dict(headers),
                content_type="application/octet-stream",
                content_encoding="binary",
            )

    async def restart(self) -> None:
        await asyncio.to_thread(self._broker.restart)

    async def kill(self) -> None:
        await asyncio.to_thread(self._broker.kill)
        await asyncio.to_thread(self._broker.start)

    async def cut(self) -> None:
        self._proxy.cut()

    async def pause(self) -> None:
        self._proxy.stall()

    async def heal(self) -> None:
        self._proxy.heal()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    try:
        broker = start("rabbitmq")
    except BrokerMissing as exc:
        pytest.skip(str(exc))
    with broker:
        yield broker


class TestRabbitMQ(AdapterContract):
    @pytest.fixture
    def harness(self, broker: Broker) -> Iterator[Harness]:
        parts = urlsplit(broker.url)
        with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
            yield RabbitHarness(broker, proxy)
