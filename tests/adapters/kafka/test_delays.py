"""Delays: published and nacked, of queues, topics and patterns; never early, never in the way of others."""

from __future__ import annotations

import pytest

from msgbus.adapter import ATTEMPTS, Ack, Address, Kind, Nack, Provision, Source
from msgbus.errors import Unroutable
from msgbus_kafka import _partition


async def arrivals(kit, subscription, count, clock):
    """Take messages one by one; return when each came."""
    came = {}
    while len(came) < count:
        for message in await kit.take(subscription, 1):
            came[message.body] = clock.now()
            await subscription.settle([Ack(message)])
    return came


def test_delays_of_any_length_are_met_whatever_was_published_before(kit):
    async def main():
        source = kit.queue()
        async with kit.adapter(source) as adapter:
            clock = adapter.config.clock
            delays = {b"%g" % delay: delay for delay in (2.0, 0.3, 1.2, 0.7, 3600.0)}
            due = {body: clock.now() + delay for body, delay in delays.items()}
            await kit.publish(adapter, *(kit.message(source.address, b, delay=d) for b, d in delays.items()))
            subscription = await kit.subscribe(adapter, source)
            came = await arrivals(kit, subscription, 4, clock)
            lateness = {body: came[body] - due[body] for body in came}
            assert all(0 <= late < 1.0 for late in lateness.values()), lateness
            assert (await adapter.stats(source)).delayed == 1

    kit.run(main())


def test_a_retry_waits_at_the_broker_and_survives_its_consumer(kit):
    async def main():
        (source,) = kit.topic("group")
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, kit.message(source.address, "x", key="k", headers={"a": "b"}))
            subscription = await kit.subscribe(adapter, source)
            (message,) = await kit.take(subscription, 1)
            due = adapter.config.clock.now() + 1.5
            await subscription.settle([Nack(message, 1.5, headers={**message.headers, ATTEMPTS: "1"})])
            await subscription.aclose()
            assert (await adapter.stats(source)).ready == 0

            subscription = await kit.subscribe(adapter, source)
            (again,) = await kit.take(subscription, 1)
            assert adapter.config.clock.now() >= due
            assert (again.body, again.key, again.channel) == (b"x", "k", source.address.name)
            assert again.headers == {**message.headers, ATTEMPTS: "1"}

    kit.run(main())


def test_a_topics_delayed_message_reaches_every_group_once(kit):
    async def main():
        sources = kit.topic("one", "two")
        async with kit.adapter(*sources) as adapter, kit.adapter() as other:
            taps = [await kit.subscribe(adapter, source) for source in sources]
            due = adapter.config.clock.now() + 1.0
            message = kit.message(sources[0].address, "x", key="k", delay=1.0, headers={"a": "b"})
            await kit.publish(other, message)
            for tap in taps:
                (got,) = await kit.drain(tap, 1)
                assert adapter.config.clock.now() >= due
                assert (got.body, got.key, got.headers) == (b"x", "k", message.headers)
                assert await tap.receive(1, 0.5) == []

    kit.run(main())


def test_a_topics_delayed_message_is_brought_on_when_its_publisher_is_gone(kit):
    async def main():
        (source,) = kit.topic("group")
        async with kit.adapter(source) as adapter:
            async with kit.adapter() as publisher:
                await kit.publish(publisher, kit.message(source.address, "x", delay=1.0))
            subscription = await kit.subscribe(adapter, source)
            (got,) = await kit.drain(subscription, 1)
            assert got.body == b"x"

    kit.run(main())


def test_a_retry_of_a_pattern_keeps_its_channel(kit):
    async def main():
        prefix = kit.name("p")
        channels = [Address(Kind.TOPIC, f"{prefix}.{word}") for word in ("a", "b")]
        source = Source(Address(Kind.TOPIC, f"{prefix}.*"), "group")
        async with kit.adapter(*channels, source) as adapter:
            subscription = await kit.subscribe(adapter, source)
            await kit.publish(adapter, *(kit.message(channel, channel.name) for channel in channels))
            got = await kit.take(subscription, 2)
            await subscription.settle([Nack(message, 0.5, headers=dict(message.headers)) for message in got])
            again = await kit.take(subscription, 2)
            assert {(m.channel, m.body.decode()) for m in again} == {(c.name, c.name) for c in channels}

            later = Address(Kind.TOPIC, f"{prefix}.later")
            await kit.declare(adapter, later)
            await kit.publish(adapter, kit.message(later, "new", delay=0.5))
            (new,) = await kit.take(subscription, 1)
            assert (new.channel, new.body) == (later.name, b"new")

    kit.run(main())


def test_more_waits_than_fits_into_memory(kit, monkeypatch):
    """A partition of which too much waits is read no further until some of it is due; nothing is lost."""
    monkeypatch.setattr(_partition, "_WINDOW", 20)

    async def main():
        source = kit.queue()
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, n, delay=1.0 + (n % 10) / 10) for n in range(200)))
            subscription = await kit.subscribe(adapter, source, prefetch=10)
            got = []
            while len(got) < 200:
                got += await kit.drain(subscription, 1)
            assert sorted(int(m.body) for m in got) == list(range(200))

    kit.run(main())


def test_a_blocked_key_does_not_fill_the_memory_or_stop_the_others(kit, monkeypatch):
    monkeypatch.setattr(_partition, "_WINDOW", 20)

    async def main():
        source = kit.queue(keyed=True, partitions=2)
        async with kit.adapter(source) as adapter:
            subscription = await kit.subscribe(adapter, source, prefetch=10)
            await kit.publish(adapter, kit.message(source.address, "head", key="blocked"))
            (head,) = await kit.take(subscription, 1)
            await subscription.settle([Nack(head, 2.0, headers=dict(head.headers))])
            await kit.publish(adapter, *(kit.message(source.address, n, key="blocked") for n in range(100)))
            await kit.publish(adapter, *(kit.message(source.address, "free", key=f"k{n}") for n in range(20)))
            before = [m for m in await kit.drain(subscription, 5) if m.key == "blocked"]
            assert before == []
            rest = []
            while len(rest) < 116:
                rest += await kit.drain(subscription, 1)
            blocked = [m.body for m in rest if m.key == "blocked"]
            assert blocked == [b"head", *(b"%d" % n for n in range(100))]

    kit.run(main())


def test_a_copy_that_is_not_confirmed_leaves_the_message_unsettled(kit):
    """The broker refuses the retry's copy: the nack fails, works when tried again, and nothing is lost."""

    async def main():
        source = kit.queue()
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, kit.message(source.address, b"x" * 5000))
            subscription = await kit.subscribe(adapter, source)
            (message,) = await kit.take(subscription, 1)
            send = adapter._producer.send

            async def refuse(records):
                for record in records:
                    record.error = Unroutable("no")

            adapter._producer.send = refuse
            nack = Nack(message, 0.2, headers=dict(message.headers))
            (error,) = await subscription.settle([nack])
            assert "no" in str(error)
            assert await subscription.receive(1, 0.5) == []
            adapter._producer.send = send
            assert await subscription.settle([nack]) == [None]
            assert len(await kit.drain(subscription, 1)) == 1

    kit.run(main())


def test_without_the_right_to_create_a_delay_needs_its_topics(kit):
    async def main():
        (source,) = kit.topic("group")
        async with kit.adapter(source) as adapter, kit.adapter(provision=Provision.VERIFY) as verifying:
            (error,) = await verifying.publish([kit.message(source.address, "x", delay=1.0)])
            assert isinstance(error, Unroutable)
            assert f"{source.address.name}..delay.60" in str(error)
            await kit.publish(adapter, kit.message(source.address, "x", delay=1.0))
            await kit.publish(verifying, kit.message(source.address, "y", delay=1.0))

    kit.run(main())


@pytest.mark.parametrize("keyed", [False, True])
def test_giving_back_loses_no_place(kit, keyed):
    async def main():
        source = kit.queue(keyed=keyed, partitions=1)
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, n, key="k") for n in range(6)))
            subscription = await kit.subscribe(adapter, source, prefetch=10)
            first = await kit.take(subscription, 3)
            await subscription.settle([Nack(message, counted=False) for message in reversed(first)])
            got = await kit.drain(subscription, 6)
            assert [int(m.body) for m in got] == list(range(6))
            assert all(m.headers == n.headers for m, n in zip(got, first, strict=False))

    kit.run(main())
