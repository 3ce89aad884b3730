"""Groups: what survives members coming and going, restarts and killed members."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict

from aiokafka import TopicPartition

from msgbus.adapter import ATTEMPTS, Ack, Address, Kind, Nack, Source
from msgbus.errors import LeaseLost


class Ledger:
    """What the members of a group handled."""

    def __init__(self):
        self.seen: Counter[int] = Counter()
        self.of_key: defaultdict[str, list[int]] = defaultdict(list)

    def note(self, message):
        self.seen[int(message.body)] += 1
        self.of_key[message.key].append(int(message.body))

    @property
    def duplicates(self):
        return sum(self.seen.values()) - len(self.seen)

    async def member(self, kit, adapter, source, stop):
        subscription = await kit.subscribe(adapter, source, prefetch=300)
        try:
            while not stop.is_set():
                got = await subscription.receive(200, 0.2)
                for message in got:
                    self.note(message)
                acks = [Ack(message) for message in got]
                random.shuffle(acks)  # as handlers finish
                await subscription.settle(acks)
        finally:
            await subscription.aclose()


def test_three_members_come_and_go_during_keyed_messages(kit, record_property):
    """None of 50,000 is lost, each key's order is kept, and duplicates are counted."""
    total, keys, ledger = 50_000, 500, Ledger()

    async def publish(adapter, source):
        messages = [kit.message(source.address, n, key=f"key-{n % keys}") for n in range(total)]
        for start in range(0, total, 1000):
            await kit.publish(adapter, *messages[start : start + 1000])
            await asyncio.sleep(0.05)  # so that it lasts as long as the coming and going

    async def main():
        source = kit.queue(keyed=True, partitions=6)
        async with kit.adapter(source) as one, kit.adapter() as two, kit.adapter() as three:
            publishing = asyncio.create_task(publish(one, source))
            stops = [asyncio.Event() for _ in range(8)]
            tasks = []
            for number, stop in enumerate(stops):
                adapter = (one, two, three)[number % 3]
                tasks.append(asyncio.create_task(ledger.member(kit, adapter, source, stop)))
                if number >= 3:
                    stops[number - 3].set()
                await asyncio.sleep(0.7)
            await publishing
            await kit.until(lambda: len(ledger.seen) == total)
            for stop in stops:
                stop.set()
            await asyncio.gather(*tasks)

    kit.run(main())
    print(f"\n{total} messages, {len(ledger.seen)} handled, {ledger.duplicates} of them again")
    record_property("duplicates", ledger.duplicates)
    assert len(ledger.seen) == total
    for key, numbers in ledger.of_key.items():
        first_seen = list(dict.fromkeys(numbers))
        assert first_seen == sorted(first_seen), f"{key} came out of order: {first_seen[:20]}"
    assert ledger.duplicates < total // 50


def test_a_restart_repeats_what_was_unfinished_and_nothing_else(kit):
    """One message stuck at the front, all behind it done: only the stuck one comes again."""

    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(500)))
            subscription = await kit.subscribe(adapter, source, prefetch=500)
            got = await kit.take(subscription, 500)
            keep = {b"0", b"77", b"78", b"300"}
            done = [Ack(message) for message in got if message.body not in keep]
            random.shuffle(done)
            await subscription.settle(done)
            await subscription.aclose()

            subscription = await kit.subscribe(adapter, source, prefetch=500)
            again = await kit.take(subscription, 4)
            assert {message.body for message in again} == keep
            assert await subscription.receive(10, 0.5) == []
            await subscription.settle([Ack(message) for message in again])
            await subscription.aclose()

            subscription = await kit.subscribe(adapter, source)
            assert await subscription.receive(10, 0.7) == []
            async with kit.admin() as admin:
                committed = await admin.list_consumer_group_offsets(source.address.name)
            assert committed[TopicPartition(source.address.name, 0)] == (500, "")

    kit.run(main())


def test_attempts_and_delays_of_a_held_key_survive_a_restart(kit):
    async def main():
        source = kit.queue(keyed=True)
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, n, key="k") for n in range(3)))
            subscription = await kit.subscribe(adapter, source)
            first, second, third = await kit.take(subscription, 3)
            headers = {**first.headers, ATTEMPTS: "3"}
            await subscription.settle([Nack(first, 4.0, headers=headers), Nack(second, counted=False)])
            await subscription.settle([Nack(third, counted=False)])
            due = adapter.config.clock.now() + 3.9
            await subscription.aclose()

            subscription = await kit.subscribe(adapter, source)
            (first,) = await kit.take(subscription, 1)
            assert adapter.config.clock.now() >= due
            assert (first.body, first.headers[ATTEMPTS]) == (b"0", "3")
            assert [m.body for m in await kit.take(subscription, 2)] == [b"1", b"2"]

    kit.run(main())


def test_a_partition_that_stays_keeps_its_messages_in_flight(kit):
    """A member that comes and goes does not make the others handle again what they are handling."""

    async def main():
        source = kit.queue(partitions=2)
        async with kit.adapter(source, query="&rebalance_drain=0.3") as adapter, kit.adapter() as other:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(20)))
            subscription = await kit.subscribe(adapter, source, prefetch=50)
            held = await kit.take(subscription, 20)
            joined = await kit.subscribe(other, source, prefetch=20)
            (moved,) = await kit.take(joined, 1)
            partition = moved.raw.partition
            results = await subscription.settle([Ack(message) for message in held])

            stayed = [m for m in held if m.raw.partition != partition]
            went = [m for m in held if m.raw.partition == partition]
            assert len(stayed) == len(went) == 10
            for message, result in zip(held, results, strict=True):
                assert isinstance(result, LeaseLost) == (message in went)
            assert await subscription.receive(10, 1.0) == []
            await joined.settle([Ack(moved)])
            await kit.drain(joined, 9)

    kit.run(main())


def test_running_messages_get_a_moment_before_their_partition_goes(kit):
    """What is settled during a rebalance is not handled again by the new owner."""

    async def main():
        source = kit.queue(partitions=2)
        async with kit.adapter(source) as adapter, kit.adapter() as other:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(20)))
            subscription = await kit.subscribe(adapter, source, prefetch=50)
            held = await kit.take(subscription, 20)
            joining = asyncio.create_task(kit.subscribe(other, source))
            await asyncio.sleep(1.0)
            assert not joining.done()  # the group waits for the messages that are out
            assert await subscription.settle([Ack(message) for message in held]) == [None] * 20
            joined = await joining
            assert await joined.receive(10, 1.0) == []

    kit.run(main())


def test_members_of_a_keyed_source_own_the_same_partition_of_all_its_topics(kit):
    """A delayed message of a key comes to whoever has the key."""

    async def main():
        source = kit.queue(keyed=True)
        async with kit.adapter(source) as one, kit.adapter(source) as two:
            subscriptions = [await kit.subscribe(one, source), await kit.subscribe(two, source)]
            keys = [f"k{n}" for n in range(12)]
            await kit.publish(one, *(kit.message(source.address, "now", key=key) for key in keys))
            await kit.publish(one, *(kit.message(source.address, "later", key=key, delay=1.0) for key in keys))
            owners = defaultdict(set)

            async def consume(number, subscription):
                while sum(len(bodies) for bodies in owners.values()) < 24:
                    for message in await subscription.receive(50, 0.3):
                        owners[message.key].add((number, message.body))
                        await subscription.settle([Ack(message)])

            await asyncio.gather(*(consume(n, s) for n, s in enumerate(subscriptions)))
            for key in keys:
                assert {number for number, _ in owners[key]} in ({0}, {1})
            assert {number for bodies in owners.values() for number, _ in bodies} == {0, 1}

    kit.run(main())


def test_members_of_a_keyed_pattern_own_the_same_partition_of_all_its_topics(kit):
    """A dead letter that is replayed to a pattern's group comes to whoever has its key."""

    async def main():
        prefix = kit.name("p")
        channel = Address(Kind.TOPIC, f"{prefix}.a", keyed=True)
        source = Source(Address(Kind.TOPIC, f"{prefix}.*", keyed=True), "group")
        async with kit.adapter(channel, source) as one, kit.adapter(source) as two:
            subscriptions = [await kit.subscribe(one, source), await kit.subscribe(two, source)]
            keys = [f"k{n}" for n in range(12)]
            await kit.publish(one, *(kit.message(channel, "now", key=key) for key in keys))
            await kit.publish(one, *(kit.message(source, "replayed", key=key, channel=channel.name) for key in keys))
            owners = defaultdict(set)

            async def consume(number, subscription):
                while sum(len(bodies) for bodies in owners.values()) < 24:
                    for message in await subscription.receive(50, 0.3):
                        owners[message.key].add((number, message.body))
                        await subscription.settle([Ack(message)])

            await asyncio.gather(*(consume(n, s) for n, s in enumerate(subscriptions)))
            for key in keys:
                assert {number for number, _ in owners[key]} in ({0}, {1})
            assert {number for bodies in owners.values() for number, _ in bodies} == {0, 1}

    kit.run(main())


def test_commits_of_somebody_else_are_read_without_their_metadata(kit):
    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(6)))
            async with kit.consumer(source.address.name, group_id=source.address.name) as plain:
                first = await plain.getone()
                await plain.getone()
                await plain.commit(
                    {next(iter(plain.assignment())): (first.offset + 2, "a note of another application")}
                )
            subscription = await kit.subscribe(adapter, source)
            assert [m.body for m in await kit.drain(subscription, 4)] == [b"2", b"3", b"4", b"5"]

    kit.run(main())


def test_a_new_group_begins_at_the_first_message_or_the_next_one_by_option(kit):
    async def main():
        (early,) = kit.topic("group")
        (late,) = kit.topic("group", start="latest")
        async with kit.adapter(early.address, late.address) as adapter:
            for source in (early, late):
                await kit.publish(adapter, kit.message(source.address, "before"))
                await kit.declare(adapter, source)
                await kit.publish(adapter, kit.message(source.address, "after"))
                await kit.declare(adapter, source)
            got = [await kit.subscribe(adapter, source) for source in (early, late)]
            assert sorted(m.body for m in await kit.drain(got[0], 2)) == [b"after", b"before"]
            assert [m.body for m in await kit.drain(got[1], 1)] == [b"after"]
            assert await got[1].receive(1, 0.5) == []

    kit.run(main())
