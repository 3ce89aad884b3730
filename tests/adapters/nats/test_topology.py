"""Streams and consumers are created, verified and joined."""

from __future__ import annotations

import asyncio

import pytest

from msgbus.adapter import (
    DeadLetter,
    Provision,
    Source,
    Topology,
)
from msgbus.errors import PublishRejected, TopologyError, Unroutable


def test_existing_streams_are_joined(kit):
    """Publishing, consuming by a consumer that is there, dead-lettering; nothing of theirs is changed."""

    async def body():
        stream, subject = f"{kit.prefix}-theirs", f"{kit.prefix}.theirs.new"
        queue = kit.queue(stream=stream, subject=subject, consumer="billing", declare=False)
        source = Source(queue)
        async with kit.plain() as client:
            jetstream = client.jetstream()
            await jetstream.add_stream(name=stream, subjects=[f"{kit.prefix}.theirs.>"], max_age=3600)
            await jetstream.add_consumer(stream, durable_name="billing", ack_policy="explicit", max_deliver=9)
            before = (await jetstream.stream_info(stream)).config
            async with kit.adapter(queue, source) as adapter:
                subscription = await kit.consumer(adapter, source)
                await kit.publish(adapter, kit.message(queue, "ours"))
                await jetstream.publish(f"{kit.prefix}.theirs.old", b"theirs")
                got = await kit.receive(subscription, 2)
                assert kit.texts(got) == ["ours", "theirs"]
                assert {m.channel for m in got} == {"orders"}
                await kit.ack(subscription, got)
                with pytest.raises(TopologyError, match="joined"):
                    await adapter.remove(source)
            assert (await jetstream.stream_info(stream)).config == before

    kit.run(body())


@pytest.mark.parametrize(
    ("missing", "says"), [("stream", "does not exist"), ("consumer", "has no consumer"), ("subject", "but not")]
)
def test_what_is_joined_must_be_there(kit, missing, says):
    async def body():
        stream = f"{kit.prefix}-theirs"
        source = Source(kit.queue(stream=stream, subject=f"{kit.prefix}.theirs", consumer="billing", declare=False))
        async with kit.plain() as client:
            jetstream = client.jetstream()
            if missing != "stream":
                subject = f"{kit.prefix}.{'theirs' if missing == 'consumer' else 'others'}"
                await jetstream.add_stream(name=stream, subjects=[subject])
            with pytest.raises(TopologyError, match=says):
                async with kit.adapter(source):
                    pass

    kit.run(body())


def test_a_stream_of_its_own_is_declared_under_its_own_name(kit):
    async def body():
        topic = kit.topic("audit", stream=f"{kit.prefix}-audit", subject=f"{kit.prefix}.audit")
        one, two = Source(topic, "one"), Source(topic, "two")
        async with kit.adapter(topic, one, two) as adapter:
            await kit.publish(adapter, kit.message(topic, "x"))
            for source in (one, two):
                subscription = await kit.consumer(adapter, source)
                (message,) = await kit.receive(subscription, 1)
                assert (message.body, message.channel) == (b"x", "audit")
                await kit.ack(subscription, [message])
            (error,) = await adapter.publish([kit.message(one, "for one alone")])
            assert isinstance(error, PublishRejected)

    kit.run(body())


def test_declaring_otherwise_says_what_differs(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)):
            with pytest.raises(TopologyError, match=r"takes .*queue\.orders.* but not .*keyed\.\*\.orders"):
                async with kit.adapter(kit.queue(keyed=True)):
                    pass
            with pytest.raises(TopologyError, match="storage is 'file', declared 'memory'"):
                async with kit.adapter(queue, query="&storage=memory"):
                    pass

    kit.run(body())


def test_a_consumer_that_differs_is_named(kit):
    async def body():
        source = Source(kit.topic(), "mail")
        async with kit.adapter(source.address) as adapter, kit.plain() as client:
            await client.jetstream().add_consumer(
                f"{kit.prefix}-topics",
                durable_name="mail@order~placed",
                deliver_subject="x",
                ack_policy="none",
                max_deliver=3,
                filter_subject=f"{kit.prefix}.topic.other",
            )
            with pytest.raises(TopologyError) as caught:
                await adapter.declare(Topology((), (source,)))
            for says in ("topic.other, declared", "push consumer", "ack_policy is 'none'", "max_deliver is 3"):
                assert says in str(caught.value)

    kit.run(body())


@pytest.mark.parametrize("provision", [Provision.VERIFY, Provision.SKIP])
def test_nothing_is_created_unless_asked(kit, provision):
    async def body():
        source = Source(kit.queue())
        async with kit.plain() as client:
            if provision is Provision.VERIFY:
                with pytest.raises(TopologyError, match="does not exist"):
                    async with kit.adapter(source, provision=provision):
                        pass
            else:
                async with kit.adapter(source, provision=provision) as adapter:
                    (error,) = await adapter.publish([kit.message(source.address, "x")])
                    assert isinstance(error, Unroutable)
            names = [info.config.name for info in await client.jetstream().streams_info()]
            assert [name for name in names if name.startswith(kit.prefix)] == []

    kit.run(body())


@pytest.mark.parametrize("provision", [Provision.VERIFY, Provision.SKIP])
def test_dead_letters_can_be_replayed_by_who_may_not_create(kit, provision):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(source):
            pass
        async with kit.adapter(source, provision=provision) as adapter, kit.plain() as client:
            await kit.publish(adapter, kit.message(queue, "bad"))
            subscription = await kit.consumer(adapter, source)
            (received,) = await kit.receive(subscription, 1)
            assert await subscription.settle([DeadLetter(received, received.headers)]) == [None]
            graves = await kit.consumer(adapter, source.dead_letters)
            await kit.ack(graves, await kit.receive(graves, 1))
            assert await adapter.browse(source.dead_letters, limit=9) == []
            info = await client.jetstream().consumer_info(f"{kit.prefix}-dead", "queue-@orders")
            assert info.config.inactive_threshold  # it goes by itself

    kit.run(body())


def test_many_declare_at_once(kit):
    async def body():
        sources = [Source(kit.queue(f"q{i}")) for i in range(5)] + [Source(kit.topic("t"), f"g{i}") for i in range(5)]

        async def declare():
            async with kit.adapter(*sources):
                pass

        await asyncio.gather(*(declare() for _ in range(6)))

    kit.run(body())


def test_two_prefixes_share_nothing(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as mine:
            kit.prefix += "x"
            async with kit.adapter(queue, Source(queue)) as other:
                await kit.publish(mine, kit.message(queue, "x"))
                assert (await other.stats(Source(queue))).ready == 0

    kit.run(body())
