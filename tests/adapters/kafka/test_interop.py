"""With plain aiokafka on the other end, both ways, and whatever else is in a topic."""

from __future__ import annotations

import json

import pytest
from aiokafka import TopicPartition
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from msgbus.adapter import DEAD, ID, Address, DeadLetter, Kind, Nack, Source


def test_a_plain_consumer_reads_what_we_publish(kit):
    async def main():
        source = kit.queue()
        async with kit.adapter(source) as adapter, kit.consumer(source.address.name) as plain:
            headers = {"content-type": "application/json", "shop": "Zürich"}
            await kit.publish(adapter, kit.message(source.address, '{"n": 1}', key="k", headers=headers, id="the-id"))
            record = await plain.getone()
            assert (record.key, json.loads(record.value)) == (b"k", {"n": 1})
            assert dict(record.headers) == {
                ID: b"the-id",
                "content-type": b"application/json",
                "shop": "Zürich".encode(),
            }

    kit.run(main())


def test_we_read_what_a_plain_producer_publishes(kit):
    async def main():
        source = kit.queue()
        async with kit.adapter(source) as adapter, kit.producer() as plain:
            topic = source.address.name
            await plain.send_and_wait(topic, b"bare")
            await plain.send_and_wait(topic, b"keyed", key=b"k", headers=[("a", b"1"), ("a", b"2"), ("none", None)])
            await plain.send_and_wait(topic, None, key=b"tombstone")
            await plain.send_and_wait(topic, b"binary", key=b"\xff\xfe", headers=[("raw", b"\xc3\x28\x00")])
            subscription = await kit.subscribe(adapter, source)
            got = {m.body: m for m in await kit.drain(subscription, 4)}
            assert (got[b"bare"].headers, got[b"bare"].key, got[b"bare"].channel) == ({}, None, topic)
            assert (got[b"keyed"].headers, got[b"keyed"].key) == ({"a": "2", "none": ""}, "k")
            assert (got[b""].key, got[b""].raw.value) == ("tombstone", None)
            assert abs(got[b"bare"].time - adapter.config.clock.now()) < 60

    kit.run(main())


def test_bytes_that_are_not_text_survive_a_retry_and_a_dead_letter(kit):
    async def main():
        source = kit.queue(partitions=1)
        raw = b"\xc3\x28\x00\xff"
        async with kit.adapter(source) as adapter, kit.producer() as plain:
            await plain.send_and_wait(source.address.name, b"body", key=b"\xff\xfe", headers=[("raw", raw)])
            subscription = await kit.subscribe(adapter, source)
            (first,) = await kit.take(subscription, 1)
            assert await subscription.settle([Nack(first, 0.1, headers=dict(first.headers))]) == [None]
            (second,) = await kit.take(subscription, 1)
            assert await subscription.settle([DeadLetter(second, {**second.headers, DEAD: "{}"})]) == [None]
            (dead,) = await adapter.browse(source.dead_letters, limit=10)
            assert (dead.raw.key, dict(dead.raw.headers)["raw"]) == (b"\xff\xfe", raw)
            assert dead.headers == {"raw": raw.decode("utf-8", "surrogateescape"), DEAD: "{}"}

    kit.run(main())


class NotText(str):
    """A header name as a producer in C may write it."""

    __slots__ = ()

    def encode(self, *_):
        return b"na\xffme"


@pytest.mark.parametrize("compression", [0, 1])
def test_header_names_that_are_not_text_are_escaped(kit, compression):
    """They stop neither their own batch nor the partition, and what stands around them arrives once."""

    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source) as adapter, kit.producer() as plain:

            async def send(*names):
                batch = plain.create_batch()
                batch._builder = _DefaultRecordBatchBuilderPy(2, compression, 0, -1, -1, -1, 1 << 16)
                for name in names:
                    batch.append(key=None, value=b"x", timestamp=None, headers=[(name, b"1")])
                await (await plain.send_batch(batch, source.address.name, partition=0))

            for names in (["one", "two"], ["three", NotText("?"), "five"], ["six"]):
                await send(*names)
            assert len(await adapter.browse(source, limit=10)) == 6
            subscription = await kit.subscribe(adapter, source)
            got = await kit.drain(subscription, 6)
            assert [next(iter(m.headers)) for m in got] == ["one", "two", "three", r"na\xffme", "five", "six"]
            await send("seven")
            assert [next(iter(m.headers)) for m in await kit.drain(subscription, 1)] == ["seven"]
            assert await subscription.receive(1, 0.5) == []
            assert (await adapter.stats(source)).ready == 0

    kit.run(main())


def test_records_of_aborted_transactions_are_not_delivered_and_not_missed(kit):
    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source) as adapter, kit.producer(transactional_id=kit.name()) as plain:
            for outcome, body in (("commit", b"one"), ("abort", b"never"), ("commit", b"two")):
                await plain.begin_transaction()
                await plain.send(source.address.name, body)
                await (plain.commit_transaction() if outcome == "commit" else plain.abort_transaction())
            subscription = await kit.subscribe(adapter, source)
            assert [m.body for m in await kit.drain(subscription, 2)] == [b"one", b"two"]
            assert await subscription.receive(5, 0.5) == []
            await subscription.aclose()
            subscription = await kit.subscribe(adapter, source)
            assert await subscription.receive(5, 0.5) == []

    kit.run(main())


def test_an_existing_topic_and_group_are_taken_over(kit):
    """By name, with the group's own id, from where another client left off."""

    async def main():
        topic, group = "Legacy_Topic-" + kit.name(), kit.name("group")
        address = Address(Kind.TOPIC, kit.name(), native={"topic": topic, "group_id": group})
        source = Source(address, "mail")
        async with kit.adapter(source) as adapter, kit.producer() as producer:
            for n in range(4):
                await producer.send_and_wait(topic, b"%d" % n, partition=0)
            async with kit.consumer(topic, group_id=group) as plain:
                await plain.getone()
                await plain.commit({TopicPartition(topic, 0): 1})
            subscription = await kit.subscribe(adapter, source)
            got = await kit.drain(subscription, 3)
            assert [m.body for m in got] == [b"1", b"2", b"3"]
            assert {m.channel for m in got} == {address.name}

    kit.run(main())


def test_dead_letters_say_where_they_came_from_to_any_client(kit):
    async def main():
        (source,) = kit.topic("mail")
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, kit.message(source.address, "bad", key="k", headers={"a": "b"}))
            subscription = await kit.subscribe(adapter, source)
            (message,) = await kit.take(subscription, 1)
            await subscription.settle([DeadLetter(message, {**message.headers, DEAD: '{"reason": "failed"}'})])
            async with kit.consumer(f"{source.address.name}..mail..dlq") as plain:
                record = await plain.getone()
            headers = dict(record.headers)
            assert (record.key, record.value, headers["a"]) == (b"k", b"bad", b"b")
            assert json.loads(headers[DEAD]) == {"reason": "failed"}
            assert headers["msgbus-channel"] == source.address.name.encode()

    kit.run(main())
