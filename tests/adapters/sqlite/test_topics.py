"""Topics and groups, patterns, reply queues."""

from __future__ import annotations

import asyncio

import pytest

from msgbus.adapter import Address, Kind, Source
from msgbus.errors import Unroutable
from msgbus_sqlite._topology import _REPLY_LIFE


def test_every_group_gets_every_message_and_a_topic_without_groups_drops_it(kit):
    async def body():
        topic, lonely = kit.topic("t"), kit.topic("lonely")
        mail, stock = Source(topic, "mail"), Source(topic, "stock")
        async with kit.adapter(lonely, mail, stock) as adapter:
            await kit.publish(adapter, kit.message(topic, "x"), kit.message(lonely, "y"))
            for source in (mail, stock):
                consumer = await kit.consumer(adapter, source)
                received = await consumer.receive(9, 1)
                assert kit.texts(received) == ["x"]
                await kit.ack(consumer, received)
                assert await adapter.browse(source, limit=9) == []

    kit.run(body())


def test_a_source_as_target_reaches_that_group_only(kit):
    async def body():
        topic = kit.topic("t")
        mail, stock = Source(topic, "mail"), Source(topic, "stock")
        async with kit.adapter(mail, stock) as adapter:
            await kit.publish(adapter, kit.message(mail, "x"))
            assert (await adapter.stats(mail)).ready == 1
            assert (await adapter.stats(stock)).ready == 0

    kit.run(body())


def test_a_pattern_takes_the_topics_it_matches_and_tells_which(kit):
    async def body():
        names = ["order.placed", "order.gone", "order.item.added", "order", "orders.placed"]
        topics = [kit.topic(name) for name in names]
        one, many = Source(kit.topic("order.*"), "one"), Source(kit.topic("order.#"), "many")
        async with kit.adapter(*topics, one, many) as adapter:
            await kit.publish(adapter, *(kit.message(topic, topic.name) for topic in topics))
            for source, expected in ((one, names[:2]), (many, names[:3])):
                received = await (await kit.consumer(adapter, source)).receive(9, 1)
                assert expected == [message.channel for message in received] == kit.texts(received)

    kit.run(body())


def test_groups_declared_by_another_process_are_seen_at_once(kit):
    async def body():
        topic = kit.topic("order.placed")
        async with kit.adapter(topic) as publisher, kit.adapter() as other:
            await kit.publish(publisher, kit.message(topic, "nobody's"))
            exact, pattern = Source(topic, "exact"), Source(kit.topic("order.*"), "pattern")
            async with kit.adapter(exact), kit.adapter(pattern):
                pass
            await kit.publish(publisher, kit.message(topic, "x"))
            for source in (exact, pattern):
                assert kit.texts(await (await kit.consumer(other, source)).receive(9, 1)) == ["x"]

    kit.run(body())


@pytest.mark.parametrize("kind", [Kind.QUEUE, Kind.TOPIC, Kind.REQUEST, Kind.REPLY])
def test_what_does_not_exist_takes_nothing_and_the_rest_of_the_batch_passes(kit, kind):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            errors = await adapter.publish(
                [kit.message(queue, "x"), kit.message(Address(kind, "gone"), "y"), kit.message(queue, "z")]
            )
            assert [errors[0], errors[2]] == [None, None]
            assert isinstance(errors[1], Unroutable)
            assert f"{kind} 'gone'" in str(errors[1])
            assert kit.texts(await (await kit.consumer(adapter, Source(queue))).receive(9, 1)) == ["x", "z"]

    kit.run(body())


def test_reply_queues_are_private_and_gone_when_closed(kit):
    async def body():
        replies = Source(Address(Kind.REPLY, "replies"))
        async with kit.adapter() as adapter, kit.adapter() as responder:
            mine, other = [await kit.consumer(adapter, replies) for _ in range(2)]
            assert mine.address != other.address
            target = Address(Kind.REPLY, mine.address)
            waiting = asyncio.create_task(mine.receive(1, 10))
            await kit.publish(responder, kit.message(target, "answer"))
            assert kit.texts(await waiting) == ["answer"]
            assert await other.receive(1, 0) == []
            await kit.publish(responder, kit.message(target, "unread"))
            await mine.aclose()
            (error,) = await responder.publish([kit.message(target, "late")])
            assert isinstance(error, Unroutable)

    kit.run(body())


def test_reply_queues_of_dead_processes_are_swept_and_living_ones_kept(kit):
    async def body():
        clock, replies = kit.Clock(), Source(Address(Kind.REPLY, "replies"))
        async with kit.adapter(clock=clock) as adapter:
            dead, living = [await kit.consumer(adapter, replies) for _ in range(2)]
            for _ in range(3):
                await clock.advance(_REPLY_LIFE / 2)
                await living.receive(1, 0)
            async with kit.adapter(clock=clock) as responder:
                lost, kept = await responder.publish(
                    [kit.message(Address(Kind.REPLY, consumer.address), "x") for consumer in (dead, living)]
                )
            assert isinstance(lost, Unroutable)
            assert kept is None
            assert kit.texts(await living.receive(1, 0)) == ["x"]
            # A process that slept so long that it was taken for dead has its address back.
            await dead.receive(1, 0)
            await kit.publish(adapter, kit.message(Address(Kind.REPLY, dead.address), "y"))
            assert kit.texts(await dead.receive(1, 0)) == ["y"]

    kit.run(body())
