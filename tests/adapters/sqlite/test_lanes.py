"""Keyed queues: one consumer per key, order through nacks, delays and lost leases, parked keys."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time

import pytest

from msgbus.adapter import Ack, DeadLetter, Nack, Source
from msgbus.errors import LeaseLost


@pytest.fixture
def queue(kit):
    return kit.queue(keyed=True)


def test_a_key_is_one_consumers_until_all_it_holds_is_settled(kit, queue):
    async def body():
        source = Source(queue)
        async with kit.adapter(queue) as adapter, kit.adapter() as other:
            await kit.publish(adapter, *(kit.message(queue, f"{key}{n}", key) for n in range(4) for key in "ab"))
            one, two = await kit.consumer(adapter, source), await kit.consumer(other, source)
            first = await one.receive(3, 1)
            assert sorted(kit.texts(first)) == ["a0", "b0", "b1"]
            assert await two.receive(9, 0.05) == []
            await kit.ack(one, first[:2])
            await kit.ack(one, first[2:])
            rest = await two.receive(9, 1)
            assert [[t for t in kit.texts(rest) if t[0] == key] for key in "ab"] == [["a1", "a2", "a3"], ["b2", "b3"]]
            await kit.ack(two, rest)
            assert await adapter.browse(source, limit=9) == []

    kit.run(body())


def test_messages_without_a_key_wait_for_nobody(kit, queue):
    async def body():
        source = Source(queue)
        async with kit.adapter(queue) as adapter:
            keys = ["a", None, "a", None]
            await kit.publish(adapter, *(kit.message(queue, str(n), key) for n, key in enumerate(keys)))
            one, two = await kit.consumer(adapter, source), await kit.consumer(adapter, source)
            held = []
            while "0" not in kit.texts(held):
                held += await one.receive(1, 1)
            assert {"0", "1", "3"} == {*kit.texts(held), *kit.texts(await two.receive(9, 0.05))}

    kit.run(body())


def test_neither_keyed_nor_unkeyed_messages_starve(kit, queue):
    async def body():
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, "", f"k{n}" if n < 200 else None) for n in range(400)))
            consumer = await kit.consumer(adapter, Source(queue), prefetch=1000)
            keys = [(await consumer.receive(1, 1))[0].key for _ in range(60)]
            assert 5 < keys.count(None) < 55

    kit.run(body())


def test_nacked_messages_of_a_key_come_back_in_order(kit, queue):
    async def body():
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n), "a") for n in range(6)))
            consumer = await kit.consumer(adapter, Source(queue))
            received = await consumer.receive(4, 1)
            await consumer.settle([Nack(received[3]), Ack(received[1]), Nack(received[2], counted=False)])
            assert await consumer.receive(9, 0.05) == []
            await consumer.settle([Nack(received[0])])
            again = await consumer.receive(9, 1)
            assert [(m.body.decode(), m.deliveries) for m in again] == [
                ("0", 2),
                ("2", 1),
                ("3", 2),
                ("4", 1),
                ("5", 1),
            ]

    kit.run(body())


def test_a_delayed_nack_holds_its_key_and_no_other(kit, queue):
    async def body():
        clock = kit.Clock()
        async with kit.adapter(queue, clock=clock) as adapter:
            await kit.publish(adapter, *(kit.message(queue, f"{key}{n}", key) for key in "ab" for n in range(3)))
            consumer = await kit.consumer(adapter, Source(queue))
            received = {message.body.decode(): message for message in await consumer.receive(4, 1)}
            assert {"a0", "a1", "b0", "b1"} == set(received)
            await consumer.settle([Nack(received["a0"]), Nack(received["a1"], delay=60)])
            # What comes before the delayed one does not wait for it.
            again = await consumer.receive(9, 0)
            assert kit.texts(again) == ["a0"]
            await kit.ack(consumer, [*again, received["b0"], received["b1"]])
            last = await consumer.receive(9, 0)
            assert kit.texts(last) == ["b2"]
            await kit.ack(consumer, last)
            assert clock.now() + 60 == (await adapter.stats(Source(queue))).next_due
            await clock.advance(60)
            assert kit.texts([m for m in await consumer.receive(9, 0) if m.key == "a"]) == ["a1", "a2"]

    kit.run(body())


def test_a_message_published_with_a_delay_does_not_hold_its_key(kit, queue):
    async def body():
        clock = kit.Clock()
        async with kit.adapter(queue, clock=clock) as adapter:
            later, now = kit.message(queue, "later", "a", delay=60), kit.message(queue, "now", "a")
            await kit.publish(adapter, later, now)
            consumer = await kit.consumer(adapter, Source(queue))
            assert kit.texts(await consumer.receive(9, 0)) == ["now"]
            await clock.advance(20)
            await kit.publish(adapter, kit.message(queue, "then", "a"))
            await consumer.aclose()
            await clock.advance(50)
            consumer = await kit.consumer(adapter, Source(queue))
            assert kit.texts(await consumer.receive(9, 0)) == ["now", "then", "later"]

    kit.run(body())


def test_a_lane_whose_lease_ends_is_anothers_as_a_whole(kit, queue):
    async def body():
        clock, source = kit.Clock(), Source(queue)
        async with kit.adapter(queue, clock=clock) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n), "a") for n in range(4)))
            slow = await kit.consumer(adapter, source, lease=10)
            fast = await kit.consumer(adapter, source, lease=10)
            old = await slow.receive(3, 1)
            await clock.advance(9)
            assert await slow.extend(old[2:], 10) == [None]
            await clock.advance(9)
            assert await fast.receive(9, 0) == []
            await clock.advance(1)
            new = await fast.receive(2, 0)
            assert [(m.body.decode(), m.deliveries) for m in new] == [("0", 2), ("1", 2)]
            outcomes = [Ack(old[0]), Nack(old[1], delay=99), DeadLetter(old[2], {}, park=True)]
            assert [isinstance(error, LeaseLost) for error in await slow.settle(outcomes)] == [True] * 3
            assert isinstance((await slow.extend(old[:1], 10))[0], LeaseLost)
            await kit.ack(fast, new)
            assert kit.texts(await fast.receive(9, 0)) == ["2", "3"]

    kit.run(body())


def test_settling_twice_in_a_lane_does_not_free_it_early(kit, queue):
    async def body():
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n), "a") for n in range(3)))
            one = await kit.consumer(adapter, Source(queue))
            two = await kit.consumer(adapter, Source(queue))
            first, second = await one.receive(2, 1)
            errors = await one.settle([Nack(first), Nack(first), Ack(first)])
            assert [error is None for error in errors] == [True, False, False]
            assert await two.receive(9, 0.05) == []
            await kit.ack(one, [second])
            assert kit.texts(await two.receive(9, 1)) == ["0", "2"]

    kit.run(body())


def test_what_a_cancelled_receive_left_behind_goes_back_with_its_key(kit, queue):
    """After a nack, nothing of the key that was leased before it may be returned: it would overtake."""

    async def body():
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n), "a") for n in range(4)))
            consumer = await kit.consumer(adapter, Source(queue))
            call = asyncio.create_task(consumer.receive(4, 1))
            await asyncio.sleep(0)
            call.cancel()
            (first,) = await consumer.receive(1, 1)
            assert first.body == b"0"
            await consumer.settle([Nack(first, delay=0.2)])
            assert kit.texts(await consumer.receive(9, 5)) == ["0", "1", "2", "3"]

    kit.run(body())


@pytest.mark.parametrize("replay", [True, False])
def test_a_parked_key_waits_for_its_dead_letter(kit, queue, replay):
    async def body():
        clock, source = kit.Clock(), Source(queue)
        async with kit.adapter(queue, clock=clock) as adapter:
            await kit.publish(adapter, *(kit.message(queue, f"{key}{n}", key) for n in range(3) for key in "ab"))
            consumer = await kit.consumer(adapter, source)
            bad, other = await consumer.receive(2, 0)
            await consumer.settle([DeadLetter(bad, bad.headers | {"dead": "yes"}, park=True), Ack(other)])
            rest = await consumer.receive(9, 0)
            assert kit.texts(rest) == ["b1", "b2"]
            await kit.ack(consumer, rest)
            await clock.advance(1_000_000)
            await kit.publish(adapter, kit.message(queue, "a3", "a"))
            assert await consumer.receive(9, 0) == []
            stats = await adapter.stats(source)
            assert (stats.ready, stats.in_flight, stats.delayed, stats.dead, stats.next_due) == (0, 0, 0, 1, None)

            grave = await kit.consumer(adapter, source.dead_letters)
            (dead,) = await grave.receive(9, 0)
            if replay:
                await kit.publish(adapter, kit.message(source, "a0 again", "a", id=bad.headers["ce-id"]))
            await kit.ack(grave, [dead])
            expected = ["a0 again"] * replay + ["a1", "a2", "a3"]
            last = await consumer.receive(9, 0)
            assert expected == kit.texts(last)
            await kit.ack(consumer, last)

    kit.run(body())
    db = sqlite3.connect(kit.path)
    for table in ("message", "entry", "keyed", "lane"):
        assert db.execute(f"SELECT count(*) FROM msgbus_{table}").fetchone() == (0,), table
    db.close()


def test_a_key_parked_twice_waits_for_both(kit, queue):
    async def body():
        source = Source(queue)
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n), "a") for n in range(4)))
            consumer = await kit.consumer(adapter, source)
            received = await consumer.receive(3, 1)
            parked = [DeadLetter(message, message.headers, park=True) for message in received[:2]]
            await consumer.settle([*parked, Nack(received[2], counted=False)])
            grave = await kit.consumer(adapter, source.dead_letters)
            first, second = await grave.receive(2, 1)
            await kit.ack(grave, [first])
            assert await consumer.receive(9, 0.02) == []
            await grave.settle([Nack(second)])
            assert await consumer.receive(9, 0.02) == []
            await kit.ack(grave, await grave.receive(1, 1))
            assert kit.texts(await consumer.receive(9, 1)) == ["2", "3"]

    kit.run(body())


def test_a_dead_letter_that_is_not_parked_lets_its_key_go_on(kit, queue):
    async def body():
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, kit.message(queue, "bad", "a"), kit.message(queue, "good", "a"))
            consumer = await kit.consumer(adapter, Source(queue))
            (bad,) = await consumer.receive(1, 1)
            await consumer.settle([DeadLetter(bad, bad.headers)])
            assert kit.texts(await consumer.receive(9, 1)) == ["good"]

    kit.run(body())


def test_a_lane_is_drained_by_random_outcomes_in_order(kit, queue):
    """Six consumers on two adapters, 12 keys, a third of the outcomes nacks: each key's acks are in order."""

    async def body():
        choose = random.Random(7)
        acked: dict[str, list[int]] = {f"k{k}": [] for k in range(12)}
        holders: dict[str, object] = {}
        async with kit.adapter(queue) as one, kit.adapter() as two:
            await kit.publish(one, *(kit.message(queue, str(n), f"k{n % 12}") for n in range(600)))
            consumers = [await kit.consumer(adapter, Source(queue)) for adapter in (one, two) * 3]

            async def work(consumer):
                while sum(map(len, acked.values())) < 600:
                    received = await consumer.receive(choose.randint(1, 20), 0.02)
                    for message in received:
                        assert holders.setdefault(message.key, consumer) is consumer
                    await settle(consumer, received)

            async def settle(consumer, received):
                lanes: dict[str, list] = {}
                for message in received:
                    lanes.setdefault(message.key, []).append(message)
                for key, messages in lanes.items():
                    good = choose.randint(0, len(messages)) if choose.random() < 0.5 else len(messages)
                    delay = choose.choice([0, 0, 0.003])
                    acked[key] += [int(message.body) for message in messages[:good]]
                    outcomes = [Ack(m) for m in messages[:good]] + [Nack(m, delay=delay) for m in messages[good:]]
                    choose.shuffle(outcomes)
                    del holders[key]
                    assert not any(await consumer.settle(outcomes))

            await asyncio.gather(*(work(consumer) for consumer in consumers))
        for k in range(12):
            assert list(range(k, 600, 12)) == acked[f"k{k}"]

    kit.run(body())


def test_ten_thousand_keys_cost_no_more_per_message_than_a_hundred(kit):
    async def consume(adapter, queue, keys):
        for start in range(0, 10_000, 1000):
            await kit.publish(adapter, *(kit.message(queue, "", f"k{n % keys}") for n in range(start, start + 1000)))
        consumer = await kit.consumer(adapter, Source(queue), prefetch=1000)
        start, count = time.process_time(), 0
        while count < 10_000:
            received = await consumer.receive(100, 1)
            count += len(received)
            await kit.ack(consumer, received)
        return time.process_time() - start

    async def body():
        few, many = kit.queue("few", keyed=True), kit.queue("many", keyed=True)
        async with kit.adapter(few, many) as adapter:
            # Quadratic behaviour would show as a factor of a hundred; ten leaves room for a noisy machine.
            assert await consume(adapter, many, 10_000) < 10 * await consume(adapter, few, 100)

    kit.run(body())
