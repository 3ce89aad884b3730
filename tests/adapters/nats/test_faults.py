"""What the adapter survives: restarts, kills, cut and dead connections, consumers and streams that vanish."""

from __future__ import annotations

import asyncio
import os
import signal

import nats.js.errors
import pytest

from msgbus.adapter import Ack, Nack, Source
from msgbus.errors import BrokerUnavailable, LeaseLost, PublishError, SettleError
from tests.adapters.nats.load import consume_all, publish_all


async def nothing_is_left(kit, adapter, source, subscription):
    """A killed server forgets what was acked last, and hands it out again."""

    async def is_empty():
        stats = await adapter.stats(source)
        if (stats.ready, stats.in_flight) == (0, 0):
            return True
        await kit.ack(subscription, await subscription.receive(99, 0.2))
        return False

    await kit.until(is_empty)


@pytest.mark.parametrize("how", ["restart", "kill", "cut", "drop"])
@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_everything_confirmed_is_consumed_although(own_kit, how, keyed):
    """...the server is restarted or killed, or connections break, in the middle of it."""
    kit = own_kit

    async def break_it(proxy):
        if how == "restart":
            await asyncio.to_thread(kit.broker.restart)
        elif how == "kill":
            await asyncio.to_thread(kit.broker.kill)
            await asyncio.to_thread(kit.broker.start)
        elif how == "cut":
            await asyncio.to_thread(proxy.cut)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(proxy.heal)
        else:
            await asyncio.to_thread(proxy.drop)

    async def body(proxy):
        queue = kit.queue(keyed=keyed)
        source = Source(queue)
        url = kit.broker.url_through(proxy)
        async with kit.adapter(queue, source, url=url) as publisher, kit.adapter(url=url) as other:
            messages = [kit.message(queue, f"m{i}", f"k{i % 7}" if keyed else None) for i in range(2000)]
            subscription = await kit.consumer(other, source, prefetch=64, lease=3.0)
            consuming = asyncio.create_task(consume_all(kit, subscription, [m.body.decode() for m in messages]))
            publishing = asyncio.create_task(publish_all(kit, publisher, messages))
            for _ in range(2):
                await asyncio.sleep(0.15)
                await break_it(proxy)
            await publishing
            seen = await consuming
            assert set(seen) == {m.body.decode() for m in messages}
            assert await kit.until(lambda: other.health.ok)
            await nothing_is_left(kit, other, source, subscription)

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy), within=100)


def test_an_idle_subscription_revives_after_a_restart(own_kit):
    kit = own_kit

    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source)
            assert await subscription.receive(9, 0.1) == []
            await asyncio.to_thread(kit.broker.restart)
            await kit.until(lambda: adapter.health.ok)
            await publish_all(kit, adapter, [kit.message(queue, "x")])
            await kit.ack(subscription, await kit.receive(subscription, 1))

    kit.run(body())


def test_health_is_red_while_the_server_is_away(own_kit):
    kit = own_kit

    async def body():
        async with kit.adapter() as adapter:
            assert adapter.health.ok
            await asyncio.to_thread(kit.broker.kill)
            await kit.until(lambda: not adapter.health.ok)
            with pytest.raises(BrokerUnavailable):
                await adapter.publish([kit.message(kit.queue(), "x")])
            await asyncio.to_thread(kit.broker.start)
            await kit.until(lambda: adapter.health.ok)

    kit.run(body())


def test_receiving_says_that_the_connection_is_lost(own_kit):
    kit = own_kit

    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            subscription = await kit.consumer(adapter, source)
            receiving = asyncio.create_task(subscription.receive(9, 30))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(kit.broker.kill)
            with pytest.raises(BrokerUnavailable):
                await receiving

    kit.run(body())


def test_a_message_in_hand_is_settled_over_the_next_connection(own_kit):
    kit = own_kit

    async def body(proxy):
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source, url=kit.broker.url_through(proxy)) as adapter:
            await kit.publish(adapter, kit.message(queue, "x"))
            subscription = await kit.consumer(adapter, source)
            (message,) = await kit.receive(subscription, 1)
            await asyncio.to_thread(proxy.cut)
            await kit.until(lambda: not adapter.health.ok)
            (error,) = await subscription.settle([Ack(message)])
            assert isinstance(error, SettleError)
            assert not isinstance(error, LeaseLost)
            with pytest.raises(BrokerUnavailable):
                await subscription.extend([message], 30)
            await asyncio.to_thread(proxy.heal)
            await kit.until(lambda: adapter.health.ok)
            assert await subscription.settle([Ack(message)]) == [None]
            assert (await adapter.stats(source)).in_flight == 0

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))


def test_a_dead_connection_is_noticed_and_replaced(own_kit):
    """The network swallows everything; no side is told."""
    kit = own_kit

    async def body(proxy):
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source, url=kit.broker.url_through(proxy)) as adapter:
            # What the server hands to the dead connection comes again when its lease ends.
            subscription = await kit.consumer(adapter, source, lease=3.0)
            assert await subscription.receive(9, 0.1) == []
            await asyncio.to_thread(proxy.stall)
            publishing = asyncio.create_task(publish_all(kit, adapter, [kit.message(queue, "x")]))
            await kit.until(lambda: not adapter.health.ok, within=15)
            await asyncio.to_thread(proxy.heal)
            await publishing
            await kit.ack(subscription, await kit.receive(subscription, 1))
            assert (await adapter.stats(source)).ready == 0

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))


def test_a_publish_that_was_cut_off_is_stored_once(own_kit):
    """The server stores the message, its confirmation is lost, the same id is published again."""
    kit = own_kit

    async def body(proxy):
        queue = kit.queue()
        source = Source(queue)
        message = kit.message(queue, "x")
        async with kit.adapter(queue, source, url=kit.broker.url_through(proxy)) as adapter:
            await asyncio.to_thread(proxy.stall, "client")
            publishing = asyncio.create_task(adapter.publish([message]))
            async with kit.plain() as client:
                jetstream = client.jetstream()

                async def stored():
                    return (await jetstream.stream_info(f"{kit.prefix}-queue-orders")).state.messages

                await kit.until(stored)
            await asyncio.to_thread(proxy.cut)
            (error,) = await publishing
            assert isinstance(error, PublishError)
            assert error.retryable
            await asyncio.to_thread(proxy.heal)
            await kit.until(lambda: adapter.health.ok)
            await kit.publish(adapter, message)
            assert (await adapter.stats(source)).ready == 1

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))


@pytest.mark.parametrize("victim", ["consumer", "stream"])
def test_what_somebody_deletes_is_made_again(kit, victim):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        stream = f"{kit.prefix}-queue-orders"
        async with kit.adapter(queue, source) as adapter, kit.plain() as client:
            subscription = await kit.consumer(adapter, source)
            receiving = asyncio.create_task(kit.receive(subscription, 1, 50))

            async def is_served():
                try:
                    return (await client.jetstream().consumer_info(stream, "work")).num_waiting
                except nats.js.errors.NotFoundError:
                    return False

            await kit.until(is_served)
            if victim == "consumer":
                await client.jetstream().delete_consumer(stream, "work")
            else:
                await client.jetstream().delete_stream(stream)
            await kit.until(is_served)
            await kit.publish(adapter, kit.message(queue, "x"))
            await kit.ack(subscription, await receiving)

    kit.run(body())


def test_a_deleted_group_goes_on_where_it_was(kit):
    """Duplicates are possible, gaps are not."""

    async def body():
        topic = kit.topic()
        source = Source(topic, "mail")
        async with kit.adapter(topic, source) as adapter, kit.plain() as client:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, *(kit.message(topic, f"m{i}") for i in range(10)))
            await kit.ack(subscription, await kit.receive(subscription, 5))
            await client.jetstream().delete_consumer(f"{kit.prefix}-topics", "mail@order~placed")
            await kit.publish(adapter, *(kit.message(topic, f"m{i}") for i in range(10, 20)))
            seen = await consume_all(kit, subscription, [f"m{i}" for i in range(5, 20)])
            assert set(seen) >= {f"m{i}" for i in range(5, 20)}

    kit.run(body())


def test_a_server_that_stands_still_costs_nothing_but_time(own_kit):
    kit = own_kit

    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source)
            messages = [kit.message(queue, f"m{i}") for i in range(500)]
            consuming = asyncio.create_task(consume_all(kit, subscription, [m.body.decode() for m in messages]))
            publishing = asyncio.create_task(publish_all(kit, adapter, messages))
            await asyncio.sleep(0.05)
            os.killpg(kit.broker.pid, signal.SIGSTOP)
            await asyncio.sleep(1.5)
            os.killpg(kit.broker.pid, signal.SIGCONT)
            await publishing
            await consuming
            assert adapter.health.ok

    kit.run(body())


def test_delayed_messages_survive_the_death_of_the_server(own_kit):
    """One that was nacked comes again, though not before its delay or its lease has passed."""
    kit = own_kit

    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source, lease=4.0)
            await kit.publish(adapter, kit.message(queue, "nacked"), kit.message(queue, "delayed", delay=3.0))
            (message,) = await kit.receive(subscription, 1)
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert await subscription.settle([Nack(message, delay=3.0)]) == [None]
            await asyncio.to_thread(kit.broker.kill)
            await asyncio.to_thread(kit.broker.start)
            came = {}
            while len(came) < 2:
                for message in await kit.receive(subscription, 1):
                    came[message.body.decode()] = loop.time() - began
                    await kit.ack(subscription, [message])
            assert min(came.values()) >= 2.9

    kit.run(body())


def test_closing_ends_although_its_cancellation_is_swallowed(kit):
    """asyncio.wait_for, which nats-py connects with, may lose the cancellation of a task that it has an answer for."""

    async def body():
        async with kit.adapter() as adapter:
            link, connecting = adapter._link, asyncio.Event()
            dial = link._dialer.dial

            async def swallow(*args, **options):
                connecting.set()
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    return await dial(*args, **options)

            link._dialer.dial = swallow
            link._lost.set()
            await connecting.wait()
            async with asyncio.timeout(30):
                await adapter.aclose()
            assert link.client is None or not link.client.is_connected

    kit.run(body())
