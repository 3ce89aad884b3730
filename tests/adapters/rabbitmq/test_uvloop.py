"""`msgbus run` takes uvloop where it is installed: its transports are not asyncio's own."""

from __future__ import annotations

import asyncio
import secrets

import uvloop

from msgbus.adapter import ID, Outgoing
from tests.adapters.rabbitmq.conftest import PATIENCE, receive, subscribe, take


async def _round_trip(rig):
    source = rig.queue(native={"queue_type": "classic"})
    large = secrets.token_bytes(8_000_000)  # more than the transport takes at once
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, *map(str, range(500)))
        subscription = await subscribe(adapter, source, prefetch=500)
        assert await take(subscription, 500) == [str(i) for i in range(500)]
        assert await adapter.publish([Outgoing(source.address, large, {ID: "large"}, "large")]) == [None]
        assert [message.body for message in await receive(subscription, 1)] == [large]

        adapter._consuming.require().abort(ConnectionResetError("cut"))
        assert [message.body for message in await receive(subscription, 1)] == [large]


def test_a_round_trip_and_a_repair_on_uvloop(rig):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(_round_trip(rig), 3 * PATIENCE))
