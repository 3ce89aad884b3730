"""The short cuts: single messages published at once, and taken the moment they come."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from amqp import spec

from msgbus.adapter import CORRELATION_ID, ID, Ack, Address, Kind, Outgoing, Source
from msgbus.errors import ConfirmLost, Unroutable
from msgbus.testing.faults import FaultProxy
from tests.adapters.posts import Posts
from tests.adapters.rabbitmq.conftest import eventually, nothing, persist, receive, subscribe, take


def texts(messages):
    return [message.body.decode() for message in messages]


async def test_what_is_posted_is_stored_in_order_between_what_is_published(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        posts = Posts(adapter)
        assert not posts(rig.message(source, "early")), "there is no channel yet"
        await rig.publish(adapter, source, "0")
        assert all(posts(rig.message(source, str(i))) for i in range(1, 50))
        assert not posts.said, "nothing is confirmed before it is sent"
        await rig.publish(adapter, source, *map(str, range(50, 60)))
        assert posts(rig.message(source, "60"))
        await eventually(lambda: len(posts.said) == 50, "all are confirmed")
        assert set(posts.said.values()) == {None}
        assert await take(await subscribe(adapter, source, 100), 61) == [str(i) for i in range(61)]


async def test_a_post_is_refused_by_itself(rig):
    source, missing = rig.queue(), rig.queue()
    async with rig.adapter(source) as adapter:
        posts = Posts(adapter)
        await rig.publish(adapter, source, "first")
        assert posts(rig.message(missing, "lost"))
        assert posts(rig.message(source, "kept"))
        await eventually(lambda: len(posts.said) == 2, "both are settled")
        assert posts.said["id-kept"] is None
        assert type(posts.said["id-lost"]) is Unroutable


async def test_what_publish_would_explain_is_not_taken(rig):
    source = rig.queue()
    odd = rig.queue(native={"queue_typo": "x"})
    async with rig.adapter(source, options="?max_body=10") as adapter:
        posts = Posts(adapter)
        await rig.publish(adapter, source, "first")
        assert not posts(rig.message(source, "x" * 11))
        assert not posts(rig.message(odd, "x"))
        for name, value in (("n" * 256, "x"), ("long", "x" * 200_000)):
            message = rig.message(source, "x")
            message.headers[name] = value
            assert not posts(message)
        assert posts(rig.message(source, "last"))
        await eventually(lambda: posts.said, "the last one is confirmed")
        assert posts.said == {"id-last": None}
    assert not posts(rig.message(source, "closed"))


async def test_nothing_is_posted_past_what_waits(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        posts = Posts(adapter)
        await rig.publish(adapter, source, "0")
        wire = adapter._publishing.require()
        wire.pause_writing()
        publishing = asyncio.create_task(rig.publish(adapter, source, "1", "2"))
        await asyncio.sleep(0)
        assert not posts(rig.message(source, "3")), "there is no room"
        wire.resume_writing()
        assert not posts(rig.message(source, "3")), "what waited is not written yet"
        await publishing
        assert posts(rig.message(source, "3"))
        assert await take(await subscribe(adapter, source), 4) == ["0", "1", "2", "3"]


async def test_a_lost_connection_is_said_of_every_post(rig):
    source = rig.queue()
    parts = urlsplit(rig.broker.url)
    with FaultProxy(parts.hostname, parts.port) as proxy:
        async with rig.adapter(source, url=f"amqp://guest:guest@{proxy.host}:{proxy.port}/") as adapter:
            posts = Posts(adapter)
            await rig.publish(adapter, source, "first")
            await asyncio.to_thread(proxy.stall)
            for i in range(3):
                assert posts(rig.message(source, str(i)))
            await asyncio.to_thread(proxy.cut)
            await eventually(lambda: len(posts.said) == 3, "each is told")
            assert all(type(error) is ConfirmLost and error.retryable for error in posts.said.values())
            assert not posts(rig.message(source, "away"))
            await asyncio.to_thread(proxy.heal)
            assert await persist(adapter, [rig.message(source, "again")]) == [None]
            assert posts(rig.message(source, "back"))
            await eventually(lambda: posts.said.get("id-back", "nothing") is None, "it works again")


async def test_the_first_of_many_is_handed_over_and_the_rest_received(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        taken = []

        def deliver(received):
            taken.append(received)
            return len(taken) == 1

        subscription.deliver = deliver
        await rig.publish(adapter, source, "a", "b", "c", "d")
        await eventually(lambda: subscription.buffered == 3, "all have come")
        rest = await receive(subscription, 3)
        assert (texts(taken[:1]), texts(rest)) == (["a"], ["b", "c", "d"])
        assert len(taken) == 2, "what waits must not be overtaken"
        assert list(await subscription.settle([Ack(taken[0])])) == [None]
        await subscription.aclose()
        assert sorted(texts(await receive(await subscribe(adapter, source), 3))) == ["b", "c", "d"]


async def test_answers_that_are_taken_are_acked(rig):
    """Also between others that are received: acks must not be given twice, nor for what is still open."""
    reply = Source(Address(Kind.REPLY, rig.name()))
    async with rig.adapter() as adapter:
        subscription = await subscribe(adapter, reply)
        target = Address(Kind.REPLY, subscription.address)
        taken = []

        def deliver(received):
            if received.body.startswith(b"no"):
                return False
            taken.append(received)
            return True

        async def answer(*bodies):
            batch = [Outgoing(target, b.encode(), {ID: b, CORRELATION_ID: b}, b) for b in bodies]
            assert not any(await adapter.publish(batch))

        subscription.deliver = deliver
        await answer("1", "2", "no 3")
        (received,) = await receive(subscription, 1)
        await answer("4", "5")
        await eventually(lambda: len(taken) == 4, "they are delivered")
        consumer = subscription._parts[subscription.address].consumer
        await eventually(lambda: consumer.held == 1, "all but one are acked")
        await answer("6")
        await eventually(lambda: len(taken) == 5, "it is delivered")
        assert list(await subscription.settle([Ack(received)])) == [None]
        await eventually(lambda: not consumer.held, "all are acked")
        assert texts(taken) == ["1", "2", "4", "5", "6"]
        assert taken[0].headers == {ID: "1", CORRELATION_ID: "1"}

        await consumer._channel.call(spec.Basic.Qos, "lBb", 0, 64, False)  # answered after the broker has read the acks
        adapter._consuming.require().abort(ConnectionError("cut"))
        await eventually(lambda: not consumer.is_open, "it is lost")
        await eventually(lambda: consumer.is_open, "it is back")
        subscription.deliver = None
        await nothing(subscription)
