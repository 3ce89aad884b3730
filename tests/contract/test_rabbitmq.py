"""The RabbitMQ adapter keeps the contract, on a real RabbitMQ that is restarted, killed, filled and cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import amqp
import kombu
import pytest

from msgbus.adapter import Address
from msgbus.testing import AdapterContract, Harness
from msgbus.testing.faults import FaultProxy
from scripts.brokers.fixtures import brokers

__all__ = ["brokers"]


class RabbitHarness(Harness):
    """A broker of our own, reached through a proxy that can be cut."""

    def __init__(self, broker, proxy: FaultProxy) -> None:
        # A quorum queue writes each message to disk: less load says as much, and the checks take half the time.
        super().__init__(url=broker.url_through(proxy) + "?heartbeat=2", tick=0.2, load=0.3)
        self._broker = broker
        self._proxy = proxy

    async def inject_raw(self, address: Address, body: bytes, headers: Mapping[str, str]) -> None:
        await asyncio.to_thread(self._publish, address.name, body, headers)

    def _publish(self, queue: str, body: bytes, headers: Mapping[str, str], times: int = 1) -> None:
        with kombu.Connection(self._broker.url, transport_options={"confirm_publish": True}) as connection:
            producer = connection.Producer()
            for _ in range(times):
                producer.publish(
                    body,
                    routing_key=queue,
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
        await asyncio.to_thread(self._proxy.cut)

    async def pause(self) -> None:
        await asyncio.to_thread(self._proxy.stall)

    async def heal(self) -> None:
        await asyncio.to_thread(self._proxy.heal)

    async def fill(self, address: Address) -> None:
        limit = '{"max-length": 1, "overflow": "reject-publish"}'
        policy = ("set_policy", f"full-{address.name}", f"^{address.name}$", limit, "--apply-to", "queues")
        await asyncio.to_thread(self._broker.ctl, *policy)
        with pytest.raises(amqp.exceptions.MessageNacked):
            await asyncio.to_thread(self._publish, address.name, b"filler", {}, 1000)


@pytest.fixture(scope="module")
def proxied(brokers) -> Iterator[tuple]:
    broker = brokers("rabbitmq")
    with broker.proxy() as proxy:
        yield broker, proxy


class TestRabbitMQAdapter(AdapterContract):
    @pytest.fixture
    def harness(self, proxied) -> Harness:
        return RabbitHarness(*proxied)
