"""What is peculiar to the memory broker: named brokers, its URL, and that only the injected clock moves it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from msgbus.adapter import Ack, AdapterConfig, Address, BusURL, Kind, Outgoing, Source, SubscribeOptions, Topology
from msgbus.errors import ClosedError, ConfigError, UnsupportedFeature
from msgbus.testing import VirtualClock
from msgbus_memory import MemoryAdapter

QUEUE = Address(Kind.QUEUE, "q")
SOURCE = Source(QUEUE)


async def opened(url="memory://", clock=None):
    adapter = MemoryAdapter(BusURL.parse(url), AdapterConfig(clock=clock or VirtualClock()))
    await adapter.open()
    await adapter.declare(Topology((QUEUE,), (SOURCE,)))
    return adapter


def message(body=b"x", delay=0.0):
    return Outgoing(QUEUE, body, {}, "id", delay=delay)


def test_a_private_broker_is_private():
    """Two adapters of ``memory://`` share nothing."""

    async def main():
        one, two = await opened(), await opened()
        await one.publish([message()])
        return (await one.stats(SOURCE)).ready, (await two.stats(SOURCE)).ready

    assert asyncio.run(main()) == (1, 0)


def test_a_named_broker_is_shared_and_ends_with_its_last_adapter():
    """Adapters of one name share a broker; when all are gone so are its messages."""

    async def main():
        one, two = await opened("memory://shared"), await opened("memory://shared")
        await one.publish([message()])
        seen = [(await two.stats(SOURCE)).ready]
        del one, two
        gc.collect()
        seen.append((await (await opened("memory://shared")).stats(SOURCE)).ready)
        return seen

    assert asyncio.run(main()) == [1, 0]


@pytest.mark.parametrize("url", ["memory://a,b", "memory://a:1", "memory://a/path", "memory://?size=3"])
def test_a_wrong_url_is_refused(url):
    """A memory URL is a name and nothing else."""
    with pytest.raises(ConfigError):
        MemoryAdapter(BusURL.parse(url), AdapterConfig())


def test_the_clock_alone_ends_a_wait():
    """A waiting consumer gets a delayed message, and an idle one its empty answer, exactly when the clock says so."""

    async def main():
        clock = VirtualClock()
        adapter = await opened(clock=clock)
        tap = await adapter.subscribe(SOURCE, SubscribeOptions())
        await adapter.publish([message(delay=10)])
        waiting = asyncio.create_task(tap.receive(1, 60))
        await clock.advance(9.9)
        early = waiting.done()
        await clock.advance(0.1)
        got = await waiting
        await tap.settle([Ack(received) for received in got])
        idle = asyncio.create_task(tap.receive(1, 60))
        await clock.advance(59.9)
        idle_early = idle.done()
        await clock.advance(0.1)
        return early, len(got), idle_early, list(await idle)

    assert asyncio.run(main()) == (False, 1, False, [])


def test_a_waiting_consumer_sees_another_ones_lease_end():
    """A lease that begins while somebody waits wakes that one when it ends."""

    async def main():
        clock = VirtualClock()
        adapter = await opened(clock=clock)
        taker, waiter = [await adapter.subscribe(SOURCE, SubscribeOptions(lease=5)) for _ in range(2)]
        await adapter.publish([message()])
        await taker.receive(1, 0)
        waiting = asyncio.create_task(waiter.receive(1, 60))
        await clock.advance(4.9)
        early = waiting.done()
        await clock.advance(0.1)
        return early, (await waiting)[0].deliveries

    assert asyncio.run(main()) == (False, 2)


def test_a_waiting_consumer_is_told_of_the_close():
    """Closing a subscription ends a receive that waits in it."""

    async def main():
        adapter = await opened()
        tap = await adapter.subscribe(SOURCE, SubscribeOptions())
        waiting = asyncio.create_task(tap.receive(1, 60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await adapter.aclose()
        with pytest.raises(ClosedError):
            await waiting

    asyncio.run(main())


def test_a_beginning_is_refused():
    """There is nothing to replay."""

    async def main():
        with pytest.raises(UnsupportedFeature, match="replay"):
            await (await opened()).subscribe(SOURCE, SubscribeOptions(start="earliest"))

    asyncio.run(main())


def test_no_task_is_left_by_waiting():
    """The timers of receives that ended early are gone."""

    async def main():
        adapter = await opened()
        tap = await adapter.subscribe(SOURCE, SubscribeOptions())
        for _ in range(10):
            waiting = asyncio.create_task(tap.receive(1, 60))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await adapter.publish([message()])
            await waiting
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
