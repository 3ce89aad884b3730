"""Receiving, acking, giving back, delays, dead letters."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
from amqp import spec

from msgbus import Bus
from msgbus.adapter import ATTEMPTS, DEAD, Ack, DeadLetter, Nack, Source
from msgbus.errors import ClosedError, LeaseLost, SettleError, TopologyError
from tests.adapters.rabbitmq import poison
from tests.adapters.rabbitmq.conftest import eventually, nothing, receive, subscribe, take


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_acks_in_any_order_ack_those_messages_and_no_others(rig, queue_type):
    source = rig.queue(native={"queue_type": queue_type})
    texts = [str(i) for i in range(50)]
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, *texts)
        subscription = await subscribe(adapter, source)
        got = await receive(subscription, 50)
        done = [*got[30:40], *got[:10], got[49], got[20]]

        for message in done:
            assert await subscription.settle([Ack(message)]) == [None]
        await subscription.aclose()
        again = await take(await subscribe(adapter, source), 50 - len(done))

        assert sorted(set(texts) - {message.body.decode() for message in done}) == sorted(again)


async def test_acks_are_coalesced(rig):
    """Fifty acks in one call are one frame as long as nothing older is open."""
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, *map(str, range(50)))
        subscription = await subscribe(adapter, source)
        got = await receive(subscription, 50)
        sent = []
        subscription._turn[0].consumer._send = lambda *frame: sent.append(frame)

        await subscription.settle([Ack(message) for message in got[5:10]])
        await subscription.settle([Ack(message) for message in [*got[:5], *got[10:]]])

        singly = [(spec.Basic.Ack, tag, 0) for tag in range(6, 11)]
        assert [*singly, (spec.Basic.Ack, 50, 1)] == sent


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_a_nacked_message_comes_back_counted(rig, queue_type):
    source = rig.queue(native={"queue_type": queue_type})
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a")
        subscription = await subscribe(adapter, source)
        attempts = []
        for _ in range(3):
            (message,) = await receive(subscription, 1)
            attempts.append(max(message.deliveries, 1) + int(message.headers.get(ATTEMPTS, "0")))
            await subscription.settle([Nack(message)])

        assert attempts == [1, 2, 3]


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_a_message_given_back_is_not_counted(rig, queue_type):
    source = rig.queue(native={"queue_type": queue_type})
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a")
        subscription = await subscribe(adapter, source)
        (message,) = await receive(subscription, 1)
        await subscription.settle([Nack(message)])  # one attempt
        for _ in range(3):
            (message,) = await receive(subscription, 1)
            assert await subscription.settle([Nack(message, counted=False)]) == [None]
        (message,) = await receive(subscription, 1)

        assert max(message.deliveries, 1) + int(message.headers.get(ATTEMPTS, "0")) == 2


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.35, 1.0, 1.27])
async def test_a_delayed_message_is_never_early_and_hardly_late(rig, delay):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        await rig.publish(adapter, source, "retried")
        (message,) = await receive(subscription, 1)
        start = time.monotonic()
        await rig.publish(adapter, source, "scheduled", delay=delay)
        await subscription.settle([Nack(message, delay=delay, headers={**message.headers, ATTEMPTS: "1"})])

        waits = {}
        for _ in range(2):
            (message,) = await receive(subscription, 1)
            waits[message.body.decode()] = time.monotonic() - start
            await subscription.settle([Ack(message)])

        assert {"retried", "scheduled"} == set(waits)
        assert delay <= min(waits.values())
        assert max(waits.values()) < delay + 5  # the machine may be busy; the steps are 0.1 s


async def test_a_delayed_message_keeps_its_headers_and_carries_the_new_ones(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        await rig.publish(adapter, source, "a")
        (message,) = await receive(subscription, 1)
        headers = {**message.headers, ATTEMPTS: "1", "x-own": "kept"}
        await subscription.settle([Nack(message, delay=0.1, headers=headers)])

        (again,) = await receive(subscription, 1)

        assert headers == again.headers
        assert again.deliveries == 1


async def test_delays_do_not_block_each_other(rig):
    """A long delay ahead of a short one in time does not hold it up."""
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        for number in range(10):
            await rig.publish(adapter, source, f"long-{number}", delay=60.0)
        await rig.publish(adapter, source, "short", delay=0.3)

        assert await take(subscription, 1, 40) == ["short"]


async def test_a_delayed_message_to_a_queue_deleted_meanwhile_is_kept_aside(rig):
    """It goes to the vhost's queue for what has lost its way, and does not block the parking queue."""
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "lost", delay=0.5)
        await asyncio.to_thread(adapter.raw.channel().queue_delete, source.address.name)

        await eventually(lambda: adapter.raw.channel().basic_get("msgbus:lost", no_ack=True), "the message is kept")


async def test_delayed_topic_messages_reach_their_groups(rig):
    plain, keyed = rig.topic(), rig.topic(keyed=True)
    async with rig.adapter(plain, keyed) as adapter:
        await rig.publish(adapter, plain, "plain", delay=0.2)
        await rig.publish(adapter, keyed, "keyed", key="k", delay=0.2)
        got = [await receive(await subscribe(adapter, source), 1) for source in (plain, keyed)]

        assert [("plain", plain.address.name), ("keyed", keyed.address.name)] == [
            (message.body.decode(), message.channel) for (message,) in got
        ]


async def test_dead_letters_are_stored_before_the_message_is_settled(rig):
    source = rig.topic()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a", "b")
        subscription = await subscribe(adapter, source)
        first, second = await receive(subscription, 2)

        await subscription.settle([DeadLetter(first, {**first.headers, DEAD: "{}"}), Ack(second)])
        (dead,) = await receive(await subscribe(adapter, source.dead_letters), 1)

        assert (first.body, {**first.headers, DEAD: "{}"}, source.address.name) == (
            dead.body,
            dead.headers,
            dead.channel,
        )
        await nothing(subscription)


async def test_if_the_dead_letter_cannot_be_stored_the_message_stays(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a")
        subscription = await subscribe(adapter, source)
        (message,) = await receive(subscription, 1)
        adapter.raw.channel().queue_delete(f"{source.address.name}.dlq")

        (error,) = await subscription.settle([DeadLetter(message, message.headers)])
        assert isinstance(error, SettleError)
        assert not isinstance(error, LeaseLost)
        await adapter._redeclare(source)

        assert await subscription.settle([DeadLetter(message, message.headers)]) == [None]
        assert await take(await subscribe(adapter, source.dead_letters), 1) == ["a"]


async def test_replay_reaches_one_group_only(rig):
    one = rig.topic("one")
    other = Source(one.address, "other")
    async with rig.adapter(one, other) as adapter:
        results = await adapter.publish([rig.message(one, "a"), rig.message(one, "b")])
        outgoing = rig.message(one, "again")
        outgoing.target = one
        results = [*results, *await adapter.publish([outgoing])]

        assert results == [None] * 3
        assert sorted(await take(await subscribe(adapter, one), 3)) == ["a", "again", "b"]
        assert sorted(await take(await subscribe(adapter, other), 2)) == ["a", "b"]


async def test_settling_after_the_channel_is_lost_sends_nothing(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a", "b")
        subscription = await subscribe(adapter, source)
        old = await receive(subscription, 2)
        adapter._consuming.require().abort(ConnectionResetError("cut"))
        new = await receive(subscription, 2)

        # The same delivery tags as before: sent, these would ack the new deliveries.
        stale = await subscription.settle([Ack(old[0]), Nack(old[1])])
        fresh = await subscription.settle([Nack(message) for message in new])

        assert [LeaseLost, LeaseLost] == [type(error) for error in stale]
        assert list(fresh) == [None, None]
        assert sorted(await take(subscription, 2)) == ["a", "b"]


async def test_a_channel_error_is_repaired_and_nothing_is_sent_on_the_dead_channel(rig):
    """An ack of a tag that never was closes the channel (406), not the connection."""
    source, other = rig.queue(), rig.queue()
    async with rig.adapter(source, other) as adapter:
        await rig.publish(adapter, source, "a", "b")
        subscription, neighbour = await subscribe(adapter, source), await subscribe(adapter, other)
        first, second = await receive(subscription, 2)
        wire = adapter._consuming.require()
        subscription._turn[0].consumer._send(spec.Basic.Ack, 99, 0)
        channel = subscription._turn[0].consumer._channel
        await asyncio.wait([channel.closed])

        errors = await subscription.settle([Ack(first), Nack(second)])

        assert [type(error) for error in errors] == [LeaseLost, LeaseLost]
        assert sorted(await take(subscription, 2)) == ["a", "b"]
        await rig.publish(adapter, other, "c")
        assert await take(neighbour, 1) == ["c"]
        assert adapter._consuming.require() is wire


async def test_settling_twice_is_refused(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a", "b")
        subscription = await subscribe(adapter, source)
        first, second = await receive(subscription, 2)

        assert await subscription.settle([Ack(first)]) == [None]
        assert [LeaseLost, None] == [e and type(e) for e in await subscription.settle([Ack(first), Ack(second)])]
        await rig.publish(adapter, source, "c")
        assert await take(subscription, 1) == ["c"]  # the channel lives


async def test_prefetch_bounds_what_is_held(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, *map(str, range(30)))
        subscription = await subscribe(adapter, source, prefetch=7)

        got = await receive(subscription, 7)
        await nothing(subscription)
        await eventually(lambda: _ready_is(adapter, source, 23), "the rest stays at the broker")
        await subscription.settle([Ack(message) for message in got[:3]])

        assert len(await receive(subscription, 3)) == 3
        await nothing(subscription)


async def _ready_is(adapter, source, count):
    return (await adapter.stats(source)).ready == count


async def test_a_cancelled_receive_loses_nothing(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        for number in range(20):
            receiving = asyncio.ensure_future(subscription.receive(10, 5))
            await asyncio.sleep(0)
            await rig.publish(adapter, source, str(number))
            receiving.cancel()
            await asyncio.wait([receiving])
            if receiving.cancelled():
                assert [str(number)] == await take(subscription, 1)
            else:
                (message,) = receiving.result()
                await subscription.settle([Ack(message)])


async def test_closing_gives_everything_back_at_once(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter, rig.adapter() as other:
        await rig.publish(adapter, source, *map(str, range(10)))
        subscription = await subscribe(adapter, source)
        held = await receive(subscription, 4)
        waiting = await subscribe(other, source)

        await subscription.aclose()
        await subscription.aclose()

        assert sorted(map(str, range(10))) == sorted(await take(waiting, 10))
        assert [LeaseLost] == [type(error) for error in await subscription.settle([Ack(held[0])])]
        with pytest.raises(ClosedError):
            await subscription.receive(1, 0)


async def test_a_consumer_cancelled_by_the_broker_is_repaired(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        await asyncio.to_thread(adapter.raw.channel().queue_delete, source.address.name)
        await eventually(lambda: _exists(adapter, source), "the queue is declared again")

        await rig.publish(adapter, source, "a")

        assert await take(subscription, 1) == ["a"]


async def _exists(adapter, source):
    try:
        await adapter.stats(source)
    except TopologyError:
        return False
    return True


async def test_subscribing_to_what_does_not_exist_is_an_error(rig):
    async with rig.adapter() as adapter:
        with pytest.raises(TopologyError, match="no queue"):
            await subscribe(adapter, rig.queue())


async def test_stats(rig):
    source, keyed = rig.queue(), rig.queue(keyed=True)
    async with rig.adapter(source, keyed) as adapter:
        await rig.publish(adapter, source, "a", "b")
        for key in "abcdef":
            await rig.publish(adapter, keyed, key, key=key)
        await eventually(lambda: _ready_is(adapter, source, 2), "two are ready")
        await eventually(lambda: _ready_is(adapter, keyed, 6), "six in all partitions")

        assert (await adapter.stats(source)).dead == 0
        with pytest.raises(TopologyError):
            await adapter.stats(rig.queue())


async def test_a_message_that_kills_its_consumer_is_dead_lettered(rig):
    """The broker counts, so not even workers that live no longer than the message are killed for ever."""
    async with Bus(rig.broker.url) as bus:
        await bus.send_many(poison.JOBS, ["poison", "good"])
        command = [sys.executable, poison.__file__, rig.broker.url]
        worker = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(250):
            printed, _ = await worker.communicate()
        (dead,) = await (await bus.dead_letters(poison.JOBS)).peek()

    # Its attempts, and the slack for deliveries that ended before a handler saw the message.
    assert int(printed) == poison.ATTEMPTS + 20
    assert (dead.message.body, dead.report.reason) == (b"poison", "crashed")


async def test_the_brokers_consumer_timeout_is_repaired(rig):
    """Half an hour by default: then the broker closes the channel, and hands its messages out again."""
    source = rig.queue()
    limits = {"consumer_timeout": (1_000, 1_800_000), "channel_tick_interval": (1_000, 60_000)}
    set_env = "application:set_env(rabbit, {}, {})".format
    short = ", ".join(set_env(name, value) for name, (value, _) in limits.items())
    default = ", ".join(set_env(name, value) for name, (_, value) in limits.items())
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a")
        await asyncio.to_thread(rig.broker.ctl, "eval", f"{short}.")
        try:
            subscription = await subscribe(adapter, source)
            (held,) = await receive(subscription, 1)
            (again,) = await receive(subscription, 1)
        finally:
            await asyncio.to_thread(rig.broker.ctl, "eval", f"{default}.")

        assert [LeaseLost] == [type(error) for error in await subscription.settle([Ack(held)])]
        assert again.deliveries == 2


async def test_the_broker_drops_what_has_outlived_its_expiration(rig):
    source = rig.queue(native={"expiration": 100})
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "old")
        await eventually(lambda: _ready_is(adapter, source, 0), "it is dropped")

        await nothing(await subscribe(adapter, source), 0.1)
