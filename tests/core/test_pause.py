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


def test_resuming_a_subscription_that_drains_is_harmless() -> None:
    """The drain goes on; what waits at the broker stays there."""

    async def main() -> None:
        bus, began, let_go = Bus("memory://"), list[str](), asyncio.Event()

        @bus.on(orders, concurrency=1, prefetch=9)
        async def handle(order: Order) -> None:
            began.append(order.id)
            await let_go.wait()

        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"))
            await eventually(lambda: began == ["1"])
            draining = asyncio.create_task(bus.drain())
            await asyncio.sleep(0.05)
            await bus.resume(orders)
            await bus.send(orders, Order(id="2"))
            await asyncio.sleep(0.1)
            assert (await bus.stats(orders)).ready == 1  # nobody has taken it
            let_go.set()
            await draining

    run(main())
