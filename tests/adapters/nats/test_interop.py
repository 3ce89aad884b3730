"""Ordinary NATS clients and ours understand each other, both ways."""

from __future__ import annotations

import asyncio

import nats.errors
import pytest

from msgbus.adapter import (
    CORRELATION_ID,
    KEY,
    REPLY_TO,
    Ack,
    Address,
    Kind,
    Nack,
    Outgoing,
    Source,
)
from msgbus.errors import ChannelError, NoResponders, PublishRejected, UnsupportedFeature


def request_channel(**native):
    return Address(Kind.REQUEST, "price", native=native)


def test_a_plain_message_is_consumed(kit):
    async def body():
        source = Source(kit.queue("orders.eu"))
        async with kit.adapter(source) as adapter, kit.plain() as client:
            jetstream = client.jetstream()
            await jetstream.publish(f"{kit.prefix}.queue.orders.eu", b"bare")
            await jetstream.publish(f"{kit.prefix}.queue.orders.eu", b"dressed", headers={"Theirs": "yes"})
            subscription = await kit.consumer(adapter, source)
            bare, dressed = await kit.receive(subscription, 2)
            assert (bare.body, bare.headers, bare.channel) == (b"bare", {}, "orders.eu")
            assert dressed.headers == {"Theirs": "yes"}
            await kit.ack(subscription, [bare, dressed])

    kit.run(body())


def test_ours_is_read_by_a_plain_client(kit):
    async def body():
        topic = kit.topic("order.placed")
        async with kit.adapter(topic) as adapter, kit.plain() as client:
            sub = await client.jetstream().subscribe(f"{kit.prefix}.topic.order.placed", ordered_consumer=True)
            await kit.publish(adapter, kit.message(topic, "hello", headers={"mine": "é"}))
            message = await sub.next_msg(5)
            assert message.data == b"hello"
            assert message.headers["ce-id"] == "id-1"
            assert message.headers["mine"] == "é"

    kit.run(body())


def test_a_raw_message_can_be_acked_by_hand(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            assert adapter.raw.is_connected
            await kit.publish(adapter, kit.message(queue, "x"))
            subscription = await kit.consumer(adapter, source)
            (message,) = await kit.receive(subscription, 1)
            assert message.raw.metadata.stream == f"{kit.prefix}-queue-orders"
            await message.raw.ack_sync()
            assert (await adapter.stats(source)).in_flight == 0

    kit.run(body())


def test_a_plain_requester_gets_its_answer(kit):
    async def body():
        source = Source(request_channel())
        async with kit.adapter(source) as adapter, kit.plain() as client:
            responder = await kit.consumer(adapter, source)
            asking = asyncio.create_task(client.request(f"{kit.prefix}.request.price", b"?", timeout=5))
            (question,) = await kit.receive(responder, 1)
            reply = Address(Kind.REPLY, question.headers[REPLY_TO])
            await kit.publish(adapter, Outgoing(reply, b"42", {"mine": "yes"}, "a1"))
            await kit.ack(responder, [question])
            answer = await asking
            assert (answer.data, answer.headers) == (b"42", {"mine": "yes"})

    kit.run(body())


def test_a_plain_responder_answers_us(kit):
    async def body():
        price = request_channel()
        async with kit.adapter(price) as adapter, kit.plain() as client:

            async def answer(message):
                await message.respond(b"42 " + message.data)

            await client.subscribe(f"{kit.prefix}.request.price", cb=answer)
            await client.flush()
            replies = await kit.consumer(adapter, Source(Address(Kind.REPLY, "me")))
            await kit.publish(
                adapter, *(kit.message(price, str(i), headers={REPLY_TO: replies.address}) for i in range(3))
            )
            got = await kit.receive(replies, 3)
            assert {m.headers[CORRELATION_ID]: m.body for m in got} == {
                "id-1": b"42 0",
                "id-2": b"42 1",
                "id-3": b"42 2",
            }
            await kit.ack(replies, got)

    kit.run(body())


def test_an_answer_nobody_waits_for_is_an_error(kit):
    async def body():
        async with kit.adapter() as adapter, kit.adapter() as requester:
            replies = await kit.consumer(requester, Source(Address(Kind.REPLY, "me")))
            address = Address(Kind.REPLY, replies.address)
            await kit.publish(adapter, Outgoing(address, b"in time", {}, "a1"))
            assert kit.texts(await kit.receive(replies, 1)) == ["in time"]
            await replies.aclose()
            await requester._link.sync()
            (error,) = await adapter.publish([Outgoing(address, b"late", {}, "a2")])
            assert isinstance(error, NoResponders)

    kit.run(body())


@pytest.mark.parametrize("subject", ["a b", "a\r\nPUB evil 0\r\n\r\n", "a\x00"])
def test_a_reply_address_cannot_smuggle_commands(kit, subject):
    async def body():
        async with kit.adapter() as adapter, kit.plain() as client:
            evil = await client.subscribe("evil")
            await client.flush()
            for headers in ({}, {"mine": "x"}):
                (error,) = await adapter.publish([Outgoing(Address(Kind.REPLY, subject), b"x", headers, "a1")])
                assert isinstance(error, PublishRejected | NoResponders)
            assert adapter.health.ok
            assert evil.pending_msgs == 0

    kit.run(body())


def test_responders_share_requests_and_pass_on_what_they_leave(kit):
    async def body():
        price = request_channel()
        source = Source(price)
        async with kit.adapter(source) as adapter, kit.adapter(source) as other:
            first, second = await kit.consumer(adapter, source), await kit.consumer(other, source)
            await kit.publish(adapter, *(kit.message(price, f"m{i}") for i in range(40)))
            mine = await first.receive(99, 0.3)
            theirs = await second.receive(99, 0.3)
            assert mine
            assert theirs
            assert sorted(kit.texts([*mine, *theirs])) == sorted(f"m{i}" for i in range(40))
            assert await first.settle([Ack(m) for m in mine[1:]]) == [None] * (len(mine) - 1)
            await kit.ack(second, theirs)
            await first.aclose()
            assert kit.texts(await kit.receive(second, 1)) == kit.texts(mine[:1])

    kit.run(body())


def test_a_nacked_request_comes_again(kit):
    async def body():
        price = request_channel()
        source = Source(price)
        async with kit.adapter(source) as adapter:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, kit.message(price, "x"))
            (message,) = await kit.receive(subscription, 1)
            assert await subscription.settle([Nack(message, delay=0.3)]) == [None]
            (again,) = await kit.receive(subscription, 1)
            assert again.deliveries == 2
            assert await subscription.settle([Nack(again, counted=False)]) == [None]
            (again,) = await kit.receive(subscription, 1)
            assert again.deliveries == 2
            await kit.ack(subscription, [again])

    kit.run(body())


def test_durable_requests_wait_for_a_responder(kit):
    async def body():
        price = request_channel(durable=True)
        source = Source(price)
        async with kit.adapter(price, source) as adapter:
            await kit.publish(adapter, kit.message(price, "x"))
            subscription = await kit.consumer(adapter, source)
            await kit.ack(subscription, await kit.receive(subscription, 1))

    kit.run(body())


def test_core_nats_keeps_nothing_to_look_at(kit):
    async def body():
        source = Source(kit.topic("live", durable=False), "g")
        async with kit.adapter(source) as adapter:
            with pytest.raises(UnsupportedFeature, match="browse"):
                await adapter.browse(source, limit=1)
            with pytest.raises(UnsupportedFeature, match="replay"):
                await kit.consumer(adapter, source, start="earliest")
            stats = await adapter.stats(source)
            assert (stats.ready, stats.dead) == (None, 0)
            with pytest.raises(ChannelError):
                await adapter.publish([]) or await kit.consumer(adapter, Source(kit.topic("x", nonsense=1), "g"))

    kit.run(body())


def test_keyed_messages_of_plain_clients_are_consumed_too(kit):
    """They name the partition by its number, or leave the key out on an unkeyed topic."""

    async def body():
        topic = kit.topic("order.placed", keyed=True)
        source = Source(topic, "g")
        async with kit.adapter(source) as adapter, kit.plain() as client:
            jetstream = client.jetstream()
            await jetstream.publish(f"{kit.prefix}.topic.order.placed", b"no partition")
            await jetstream.publish(f"{kit.prefix}.parted.3.order.placed", b"partition 3", headers={KEY: "k"})
            subscription = await kit.consumer(adapter, source)
            got = await kit.receive(subscription, 2)
            assert sorted(kit.texts(got)) == ["no partition", "partition 3"]
            await kit.ack(subscription, got)

    kit.run(body())


def test_an_unkeyed_group_consumes_a_keyed_topic(kit):
    async def body():
        keyed, plain = kit.topic("order.placed", keyed=True), kit.topic("order.*")
        source = Source(plain, "audit")
        async with kit.adapter(keyed, source) as adapter:
            await kit.publish(adapter, kit.message(keyed, "x", "k"))
            subscription = await kit.consumer(adapter, source)
            (message,) = await kit.receive(subscription, 1)
            assert message.channel == "order.placed"
            await kit.ack(subscription, [message])

    kit.run(body())


def test_a_plain_request_without_responders_fails_at_once(kit):
    async def body():
        source = Source(request_channel())
        async with kit.adapter(source) as adapter, kit.plain() as client:
            subscription = await kit.consumer(adapter, source)
            await subscription.aclose()
            await adapter._link.sync()
            with pytest.raises(nats.errors.NoRespondersError):
                await client.request(f"{kit.prefix}.request.price", b"?", timeout=5)

    kit.run(body())
