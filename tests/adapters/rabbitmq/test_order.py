"""Messages of one key stay in order: while some fail, and while consumers come and go."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict

from msgbus.adapter import Ack, DeadLetter, Nack
from msgbus.errors import BrokerUnavailable
from tests.adapters.rabbitmq.conftest import nothing, receive, subscribe, take


async def publish(rig, adapter, source, *texts):
    """Publish texts like ``a1``, whose first letter is the key."""
    results = await adapter.publish([rig.message(source, text, key=text[0]) for text in texts])
    assert [None] * len(texts) == list(results)


def texts(messages):
    return [message.body.decode() for message in messages]


async def test_later_messages_wait_for_a_delayed_one_and_other_keys_do_not(rig):
    source = rig.queue(keyed=True)
    async with rig.adapter(source) as adapter:
        await publish(rig, adapter, source, "a1", "a2", "b1")
        subscription = await subscribe(adapter, source)
        got = {message.body.decode(): message for message in await receive(subscription, 3)}
        start = time.monotonic()
        await subscription.settle([Nack(got["a1"], delay=0.6), Nack(got["a2"], counted=False), Ack(got["b1"])])
        await publish(rig, adapter, source, "a3", "b2")

        assert await take(subscription, 1) == ["b2"]
        await nothing(subscription, 0.2)
        back = await receive(subscription, 3)

        assert time.monotonic() - start >= 0.6
        assert texts(back) == ["a1", "a2", "a3"]
        assert [message.deliveries for message in back] == [2, 1, 1]


async def test_nacked_messages_come_back_in_order_whatever_the_order_of_settling(rig):
    source = rig.topic(keyed=True)
    async with rig.adapter(source) as adapter:
        await publish(rig, adapter, source, "a1", "a2", "a3", "a4")
        subscription = await subscribe(adapter, source)
        a1, a2, a3, a4 = await receive(subscription, 4)
        await subscription.settle([Nack(a3)])
        await subscription.settle([Nack(a2), Nack(a4, counted=False)])
        await nothing(subscription, 0.2)
        await subscription.settle([Nack(a1)])

        back = await receive(subscription, 4)

        assert texts(back) == ["a1", "a2", "a3", "a4"]
        assert [message.deliveries for message in back] == [2, 2, 2, 1]


async def test_a_dead_letter_unblocks_its_key(rig):
    source = rig.queue(keyed=True)
    async with rig.adapter(source) as adapter:
        await publish(rig, adapter, source, "a1", "a2")
        subscription = await subscribe(adapter, source)
        a1, a2 = await receive(subscription, 2)
        await subscription.settle([Nack(a2, counted=False)])
        await nothing(subscription, 0.1)

        await subscription.settle([DeadLetter(a1, a1.headers)])

        assert await take(subscription, 1) == ["a2"]


async def test_a_classic_queue_keeps_order_and_counts_here(rig):
    source = rig.queue(keyed=True, native={"queue_type": "classic"})
    async with rig.adapter(source) as adapter:
        await publish(rig, adapter, source, "a1", "a2")
        subscription = await subscribe(adapter, source)
        a1, a2 = await receive(subscription, 2)
        await subscription.settle([Nack(a2, counted=False), Nack(a1)])

        back = await receive(subscription, 2)

        assert texts(back) == ["a1", "a2"]
        assert [message.deliveries for message in back] == [2, 0]


async def test_a_delay_survives_a_lost_connection(rig):
    source = rig.queue(keyed=True)
    async with rig.adapter(source) as adapter:
        await publish(rig, adapter, source, "a1", "a2")
        subscription = await subscribe(adapter, source)
        a1, a2 = await receive(subscription, 2)
        start = time.monotonic()
        await subscription.settle([Nack(a1, delay=1.0), Nack(a2, counted=False)])
        adapter._consuming.require().abort(ConnectionResetError("cut"))

        back = await receive(subscription, 2)

        assert time.monotonic() - start >= 1.0
        assert texts(back) == ["a1", "a2"]


async def test_order_across_consumers_that_come_and_go_and_fail(rig):
    """Each key's messages are done in order, though a tenth fails and consumers leave with messages unsettled."""
    source = rig.queue(keyed=True)
    keys, count = "abcdefgh", 200
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    draw = random.Random(seed)
    done = defaultdict(list)

    async def work(adapter, stop):
        subscription = await subscribe(adapter, source, prefetch=32)
        try:
            while not stop.is_set():
                try:
                    got = await subscription.receive(8, 0.1)
                except BrokerUnavailable:
                    continue
                failed = set()
                for message in got:
                    key, text = message.headers["ce-partitionkey"], message.body.decode()
                    if key in failed:
                        outcome = Nack(message, counted=False)
                    elif draw.random() < 0.1:
                        failed.add(key)
                        outcome = Nack(message, delay=draw.choice([0.0, 0.05]))
                    else:
                        outcome = Ack(message)
                    (error,) = await subscription.settle([outcome])
                    if error is None and isinstance(outcome, Ack):
                        done[key].append(text)
        finally:
            await subscription.aclose()

    async with rig.adapter(source) as one, rig.adapter() as two:
        for number in range(count):
            await one.publish([rig.message(source, f"{number:03}", key=key) for key in keys])
        stops = [asyncio.Event() for _ in range(4)]
        pairs = zip([one, two] * 2, stops, strict=True)
        workers = [asyncio.ensure_future(work(adapter, stop)) for adapter, stop in pairs]
        async with asyncio.timeout(60):
            while sum(map(len, done.values())) < len(keys) * count:
                await asyncio.sleep(0.15)
                stops[0].set()
                await workers[0]
                stops, workers = stops[1:], workers[1:]
                stops.append(asyncio.Event())
                workers.append(asyncio.ensure_future(work(draw.choice([one, two]), stops[-1])))
        for stop in stops:
            stop.set()
        await asyncio.gather(*workers)

    expected = [f"{number:03}" for number in range(count)]
    assert dict.fromkeys(keys, expected) == done
