"""Pausing one subscription of a process."""

from __future__ import annotations

import asyncio

import pytest

from msgbus import Bus, Queue
from msgbus.errors import ChannelError
from tests.core.support import Order, eventually, run

orders = Queue("orders", Order)


def test_a_paused_subscription_receives_nothing_until_it_is_resumed() -> None:
    """What comes in between waits; pausing and resuming twice is harmless, and so is draining while paused."""

    async def main() -> None:
        bus, seen = Bus("memory://"), list[str]()

        @bus.on(orders)
        async def handle(order: Order) -> None:
            seen.append(order.id)

        async with bus:
            with pytest.raises(ChannelError, match="no handler of 'orders' is running here; running: none"):
                await bus.pause(orders)
            await bus.start()
            await bus.pause(orders)
            await bus.pause(orders)
            await bus.send(orders, Order(id="1"))
            await asyncio.sleep(0.05)
            assert seen == []
            await bus.resume(orders)
            await bus.resume(orders)
            await eventually(lambda: seen == ["1"])
            await bus.pause(orders)

    run(main())
