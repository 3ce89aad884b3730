"""Publishing: each message's own result, Kafka's own partitions, and producers that die."""

from __future__ import annotations

import asyncio

import aiokafka.errors
import pytest
from aiokafka import AIOKafkaProducer

from msgbus.adapter import Address, Kind
from msgbus.errors import ClosedError, MessageTooLarge, PublishError, PublishTimeout, Unroutable


def test_each_message_has_its_own_result(kit):
    async def main():
        source = kit.queue()
        nowhere, reply = Address(Kind.QUEUE, kit.name()), Address(Kind.REPLY, "not one of ours")
        async with kit.adapter(source, query="&max_body=1000") as adapter:
            results = await adapter.publish(
                [
                    kit.message(source.address, "good"),
                    kit.message(source.address, b"x" * 1001),
                    kit.message(nowhere, "lost"),
                    kit.message(reply, "lost"),
                    kit.message(source.address, b"x" * 1000),
                ]
            )
            kinds = [type(result) for result in results]
            assert kinds == [type(None), MessageTooLarge, Unroutable, Unroutable, type(None)]
            assert "1001 bytes" in str(results[1])
            assert "1000" in str(results[1])

    kit.run(main())


def test_one_message_that_the_topic_refuses_does_not_take_its_batch_with_it(kit):
    async def main():
        source = kit.queue(partitions=1, config={"max.message.bytes": 4096})
        async with kit.adapter(source) as adapter:
            bodies = [b"small-%d" % n for n in range(30)]
            bodies[7] = b"x" * 8000
            results = await adapter.publish([kit.message(source.address, body) for body in bodies])
            assert [n for n, result in enumerate(results) if result is not None] == [7]
            assert isinstance(results[7], MessageTooLarge)
            assert results[7].limit == 4096
            subscription = await kit.subscribe(adapter, source)
            got = await kit.drain(subscription, 29)
            assert [m.body for m in got] == bodies[:7] + bodies[8:]

    kit.run(main())


def test_other_clients_find_a_key_where_we_put_it(kit):
    async def main():
        source = kit.queue(partitions=7)
        async with kit.adapter(source) as adapter, kit.producer() as plain:
            keys = ["", "a", "order-17", "ключ", "x" * 200, *(f"k{n}" for n in range(100))]
            await kit.publish(adapter, *(kit.message(source.address, "ours", key=key) for key in keys))
            theirs = {}
            for key in keys:
                sent = await plain.send_and_wait(source.address.name, b"theirs", key=key.encode())
                theirs[key] = sent.partition
            subscription = await kit.subscribe(adapter, source, prefetch=500)
            got = await kit.drain(subscription, 2 * len(keys))
            assert {m.key: m.raw.partition for m in got if m.body == b"ours"} == theirs

    kit.run(main())


def test_messages_without_a_key_take_partitions_in_turn(kit):
    async def main():
        source = kit.queue(partitions=4)
        async with kit.adapter(source) as adapter:
            for _ in range(8):
                await kit.publish(adapter, kit.message(source.address, "one at a time"))
            subscription = await kit.subscribe(adapter, source)
            got = await kit.drain(subscription, 8)
            assert sorted(m.raw.partition for m in got) == [0, 0, 1, 1, 2, 2, 3, 3]

    kit.run(main())


def test_calls_at_once_keep_their_order_within_a_partition(kit):
    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source) as adapter:
            batches = [[kit.message(source.address, n * 100 + m, key="k") for m in range(100)] for n in range(20)]
            await asyncio.gather(*(kit.publish(adapter, *batch) for batch in batches))
            subscription = await kit.subscribe(adapter, source, prefetch=2000)
            got = await kit.drain(subscription, 2000)
            assert [int(m.body) for m in got] == list(range(2000))

    kit.run(main())


def test_bodies_of_any_size_share_a_batch(kit):
    async def main():
        source = kit.queue(partitions=2)
        async with kit.adapter(source) as adapter:
            sizes = [0, 1, 700_000, 10, 960 * 1024, 300_000, 300_000, 300_000, 5]
            await kit.publish(adapter, *(kit.message(source.address, b"x" * size) for size in sizes))
            subscription = await kit.subscribe(adapter, source)
            assert sorted(len(m.body) for m in await kit.drain(subscription, len(sizes))) == sorted(sizes)

    kit.run(main())


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_arrive(kit, codec):
    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source, query=f"&compression={codec}") as adapter:
            await kit.publish(adapter, *(kit.message(source.address, b"same " * 100) for _ in range(50)))
            subscription = await kit.subscribe(adapter, source)
            assert {m.body for m in await kit.drain(subscription, 50)} == {b"same " * 100}

    kit.run(main())


def test_a_producer_whose_session_is_over_is_replaced(kit, monkeypatch):
    """What it was sending is told to be tried again; the next publish works."""

    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, kit.message(source.address, "before"))
            broken = adapter.raw
            broken._message_accumulator.fail_all(aiokafka.errors.OutOfOrderSequenceNumber())
            (error,) = await adapter.publish([kit.message(source.address, "during")])
            assert isinstance(error, PublishError)
            assert error.retryable
            assert adapter.raw is not broken
            await kit.publish(adapter, kit.message(source.address, "after"))

    kit.run(main())


def test_a_broker_that_never_answers_makes_a_publish_unknown(kit):
    async def main():
        source = kit.queue()
        with kit.broker.proxy() as proxy:
            url = kit.broker.url_through(proxy)
            async with kit.adapter(source, url=url, query="&delivery_timeout=1") as adapter:
                await kit.publish(adapter, kit.message(source.address, "before"))
                proxy.stall()
                (error,) = await adapter.publish([kit.message(source.address, "during")])
                assert type(error) is PublishTimeout
                proxy.heal()
                await kit.publish(adapter, kit.message(source.address, "after"))
                subscription = await kit.subscribe(adapter, source)
                got = {m.body for m in await kit.drain(subscription, 3)}
                assert got == {b"before", b"during", b"after"}  # unknown it was, and there it is

    kit.run(main())


def test_a_large_publish_fills_batches(kit):
    """A thousand messages for one partition leave as one record batch, not as a thousand."""

    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source) as adapter:
            sent = []
            original = AIOKafkaProducer.send_batch

            async def counting(self, batch, topic, *, partition):
                sent.append(batch.record_count())
                return await original(self, batch, topic, partition=partition)

            adapter.raw.send_batch = counting.__get__(adapter.raw)
            await kit.publish(adapter, *(kit.message(source.address, b"x" * 100) for _ in range(1000)))
            assert sent == [1000]

    kit.run(main())


def test_a_closed_adapter_says_so(kit):
    async def main():
        source = kit.queue()
        async with kit.adapter(source) as adapter:
            pass
        with pytest.raises(ClosedError):
            await adapter.publish([kit.message(source.address, "late")])
        with pytest.raises(ClosedError):
            await kit.subscribe(adapter, source)
        assert not adapter.health.ok

    kit.run(main())
