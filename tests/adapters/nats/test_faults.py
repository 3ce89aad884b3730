"""What the adapter survives: restarts, kills, cut and dead connections, consumers and streams that vanish."""

from __future__ import annotations

import asyncio
import os
import signal

import nats.js.errors
import pytest

from msgbus.adapter import Ack, Nack, Source
from msgbus.errors import BrokerUnavailable, LeaseLost, PublishError, SettleError
from msgbus_nats import _keyed
from tests.adapters.nats.load import consume_all, publish_all


async def nothing_is_left(kit, adapter, source, subscription):
    """A killed server forgets what was acked last, and hands it out again; what was broken may be noticed only now."""

    async def is_empty():
        try:
            stats = await adapter.stats(source)
            if (stats.ready, stats.in_flight) == (0, 0):
                return True
            await subscription.settle([Ack(received) for received in await subscription.receive(99, 0.2)])
        except BrokerUnavailable:
            pass
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


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_what_a_connection_that_stood_still_brings_may_be_somebody_elses(own_kit, keyed):
    """A message is as old as the connection may have stood still, however new it looks."""
    kit = own_kit

    async def body(proxy):
        queue = kit.queue(keyed=keyed)
        source = Source(queue)
        key = "k" if keyed else None
        async with (
            kit.adapter(queue, source) as second,
            kit.adapter(url=kit.broker.url_through(proxy)) as first,
        ):
            former = await kit.consumer(first, source, lease=4.0, prefetch=1)
            owner = await kit.consumer(second, source, lease=4.0)
            await kit.publish(second, kit.message(queue, "before", key))
            (before,) = await kit.receive(former, 1)
            await kit.ack(former, [before])
            receiving = asyncio.create_task(former.receive(1, 40))
            await kit.until(lambda: before.receipt.pull.outstanding)
            await first._link.sync()  # the server has the request

            await asyncio.to_thread(proxy.stall)
            await kit.publish(second, kit.message(queue, "x", key))
            if keyed:
                await second._tools.provisioner.unpin(before.receipt.pull.work)
            (owned,) = await kit.receive(owner, 1)
            assert await owner.extend([owned], 30.0) == [None]
            assert owned.deliveries > 1
            await asyncio.to_thread(proxy.heal)
            await first._link.sync()  # it has read what came before

            await kit.ack(owner, [owned])
            await owner.aclose()
            await kit.publish(second, kit.message(queue, "after", key))
            assert kit.texts(await receiving or await kit.receive(former, 1)) == ["after"]

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))


def test_a_lease_that_was_renewed_too_late_has_ended(own_kit):
    """The server renews the lease of whoever has the message by then, and says nothing."""
    kit = own_kit

    async def body(proxy):
        queue = kit.queue()
        source = Source(queue)
        async with (
            kit.adapter(queue, source) as second,
            kit.adapter(url=kit.broker.url_through(proxy)) as first,
        ):
            former = await kit.consumer(first, source, lease=4.0)
            owner = await kit.consumer(second, source, lease=4.0)
            await kit.publish(second, kit.message(queue, "x"))
            (lost,) = await kit.receive(former, 1)
            assert await former.extend([lost], 30.0) == [None]
            await asyncio.to_thread(proxy.stall)
            extending = asyncio.create_task(former.extend([lost], 30.0))
            (owned,) = await kit.receive(owner, 1)
            assert await owner.extend([owned], 30.0) == [None]
            assert owned.deliveries > 1
            await asyncio.to_thread(proxy.heal)
            (error,) = await extending
            assert isinstance(error, LeaseLost)
            await first._link.sync()
            (error,) = await former.settle([Ack(lost)])
            assert isinstance(error, LeaseLost)
            await kit.ack(owner, [owned])

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))


def test_keys_stay_in_order_when_a_killed_server_has_forgotten_what_it_gave_us(own_kit):
    """What we hold is not among the messages that it counts: another one is, which waits for its retry."""
    kit = own_kit

    async def body(proxy):
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with (
            kit.adapter(queue, source, query="&partitions=1") as publisher,
            kit.adapter(url=kit.broker.url_through(proxy), query="&partitions=1") as other,
        ):
            subscription = await kit.consumer(other, source)
            await kit.publish(publisher, kit.message(queue, "m0", "k"), kit.message(queue, "m1", "another"))
            failed, forgotten = await kit.receive(subscription, 2)
            assert await subscription.settle([Nack(failed, delay=3.0)]) == [None]
            await publisher.raw.publish(forgotten.receipt.reply, b"+ACK")  # the server believes that nobody has it
            await publisher._link.sync()

            before = other._link.client
            await asyncio.to_thread(proxy.drop)
            await kit.until(lambda: other._link.client not in (None, before))
            await kit.publish(publisher, kit.message(queue, "m2", "k"))
            assert kit.texts(await kit.receive(subscription, 2)) == ["m0", "m2"]

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))


@pytest.mark.parametrize("unwritten", [60.0, -60.0])
def test_what_a_killed_server_may_have_given_to_somebody_else_is_not_settled(own_kit, monkeypatch, unwritten):
    """It has not written down that we have it; acknowledged, it would be missing among what its new owner counts."""
    monkeypatch.setattr(_keyed, "_UNWRITTEN", unwritten)
    kit = own_kit

    async def body():
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with kit.adapter(queue, source, query="&partitions=1") as adapter:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, kit.message(queue, "m0", "k"), kit.message(queue, "m1", "k"))
            held = await kit.receive(subscription, 1)
            before = adapter._link.client
            await asyncio.to_thread(kit.broker.restart)
            await kit.until(lambda: adapter._link.client not in (None, before) and adapter.health.ok)
            (error,) = await subscription.settle([Ack(held[0])])
            assert isinstance(error, LeaseLost) is (unwritten > 0)
            left = ["m0", "m1"] if unwritten > 0 else ["m1"]
            again = await kit.receive(subscription, len(left))
            assert kit.texts(again) == left
            await kit.ack(subscription, again)

    kit.run(body())


def test_keys_stay_in_order_when_the_server_believes_in_a_lost_connection(own_kit):
    """It goes on serving the requests of that connection: what it hands out there comes again, and nothing before."""
    kit = own_kit

    async def body(proxy):
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with (
            kit.adapter(queue, source) as publisher,
            kit.adapter(url=kit.broker.url_through(proxy)) as other,
        ):
            subscription = await kit.consumer(other, source, prefetch=64, lease=3.0)
            await kit.publish(publisher, kit.message(queue, "first", "k"))
            await kit.ack(subscription, await kit.receive(subscription, 1))  # the partition is ours
            consuming = asyncio.create_task(consume_all(kit, subscription, [str(number) for number in range(40)]))

            before = other._link.client
            await asyncio.to_thread(proxy.half_close, "client")
            await kit.until(lambda: other._link.client not in (None, before))
            for number in range(40):  # the last one is published when the last request of before has ended
                await kit.publish(publisher, kit.message(queue, f"{number}", "k"))
                await asyncio.sleep(0.05)

            assert list(await consuming) == [str(number) for number in range(40)]

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))


def test_a_connection_that_is_lost_while_it_is_being_set_up_holds_nobody_up(own_kit):
    """Who waited for it is told, and who comes later waits for the next one only."""
    kit = own_kit

    async def body(proxy):
        async with kit.adapter(url=kit.broker.url_through(proxy)) as adapter:
            link, cuts = adapter._link, 0

            class Joining:
                async def attach(self, client):
                    nonlocal cuts
                    cuts += 1
                    if cuts == 2:
                        await asyncio.to_thread(proxy.drop)
                    if cuts > 1:
                        await link.sync()

                def detach(self): ...
                def tick(self): ...

            await link.join(Joining())
            await asyncio.to_thread(proxy.drop)
            await kit.until(lambda: cuts > 2 and adapter.health.ok, within=60)
            await link.sync()

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


class Witness:
    """Lives on a connection, and tells when it is gone."""

    def __init__(self):
        self.gone = asyncio.Event()

    async def attach(self, client):
        pass

    def detach(self):
        self.gone.set()

    def tick(self):
        pass


@pytest.mark.parametrize("turns", range(4))
def test_closed_while_a_lost_connection_is_given_up_it_leaves_no_task(own_kit, turns):
    kit = own_kit

    async def body(proxy):
        queue = kit.queue()
        source, witness = Source(queue), Witness()
        before = asyncio.all_tasks()
        async with kit.adapter(queue, source, url=kit.broker.url_through(proxy)) as adapter:
            await kit.consumer(adapter, source)
            await adapter._link.join(witness)
            await asyncio.to_thread(proxy.drop)
            async with asyncio.timeout(20):
                await witness.gone.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            await adapter._link.aclose()
        await kit.until(lambda: asyncio.all_tasks() <= before)

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))
