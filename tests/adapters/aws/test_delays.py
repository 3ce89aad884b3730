"""Delays that SQS does not have: over fifteen minutes, on topics, on keyed channels; retries beyond twelve hours."""

from __future__ import annotations

import time

import pytest

from msgbus.adapter import Ack, Nack, Source, SystemClock
from msgbus_aws import _later, _moves


class Shifted(SystemClock):
    """The system's clock, ahead of itself."""

    ahead = 0.0

    def now(self):
        return time.time() + self.ahead


@pytest.fixture
def short_hops(monkeypatch):
    """SQS delays by a second at most, as if that were its fifteen minutes."""
    monkeypatch.setattr(_moves, "LONGEST_DELAY", 1)


def test_a_long_delay_is_made_of_hops(kit, short_hops):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            before = time.time()
            await kit.publish(adapter, kit.message(source.address, "later", delay=3.2, headers={"h": "v"}))
            subscription = await kit.consumer(adapter, source)
            (received,) = await kit.receive(subscription, 1)
            assert time.time() - before >= 3.2
            assert (received.body, received.headers) == (b"later", {"ce-id": "id-1", "h": "v"})
            assert received.deliveries == 1  # hops are no attempts
            await kit.ack(subscription, [received])
            assert (await adapter.stats(source)).in_flight == 0

    kit.run(body())


def test_a_delay_of_fifteen_minutes_is_the_queues_own(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            await kit.publish(
                adapter, kit.message(source.address, delay=900), kit.message(source.address, delay=86_400)
            )
            stats = await adapter.stats(source)
            assert (stats.ready, stats.delayed) == (0, 2)

    kit.run(body())


@pytest.mark.parametrize("keyed", [False, True])
def test_a_delayed_message_reaches_every_group_of_a_topic(kit, keyed):
    async def body():
        topic = kit.topic(keyed=keyed)
        sources = [Source(topic, group) for group in ("one", "two")]
        async with kit.adapter(*sources) as adapter:
            before = time.time()
            await kit.publish(adapter, kit.message(topic, "later", key="k" if keyed else None, delay=1.2))
            for source in sources:
                (received,) = await kit.receive(await kit.consumer(adapter, source), 1)
                assert received.body == b"later"
                assert received.key == ("k" if keyed else None)
                assert time.time() - before >= 1.2

    kit.run(body())


def test_a_delayed_message_holds_up_no_key(kit):
    async def body():
        source = Source(kit.queue(keyed=True))
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, kit.message(source.address, "later", key="k", delay=2))
            await kit.publish(adapter, kit.message(source.address, "now", key="k"))
            subscription = await kit.consumer(adapter, source)
            (now,) = await kit.receive(subscription, 1)
            await kit.ack(subscription, [now])
            (later,) = await kit.receive(subscription, 1)
            assert (now.body, later.body) == (b"now", b"later")

    kit.run(body())


def test_a_consumer_finds_what_a_publisher_left_behind(kit, monkeypatch):
    """The publisher has gone before the delay is over: whoever consumes the topic forwards it."""
    monkeypatch.setattr(_later, "_LOOK", 0.2)

    async def body():
        topic = kit.topic()
        source = Source(topic, "g")
        async with kit.adapter(source) as consumer:
            subscription = await kit.consumer(consumer, source)
            async with kit.adapter(topic) as publisher:
                await kit.publish(publisher, kit.message(topic, "later", delay=1))
            (received,) = await kit.receive(subscription, 1)
            assert received.body == b"later"

    kit.run(body())


def test_a_retry_beyond_twelve_hours_is_a_copy(kit, short_hops):
    async def body():
        source, clock = Source(kit.queue()), Shifted()
        async with kit.adapter(source, clock=clock) as adapter:
            await kit.publish(adapter, kit.message(source.address, "x", headers={"h": "v"}))
            subscription = await kit.consumer(adapter, source)
            (received,) = await kit.receive(subscription, 1)
            retry = Nack(received, 13 * 3600.0, headers={**received.headers, "msgbus-attempts": "1"})
            assert list(await subscription.settle([retry])) == [None]
            assert list(await subscription.receive(1, 2.0)) == []
            clock.ahead = 13 * 3600.0
            (again,) = await kit.receive(subscription, 1)
            assert again.headers == {"ce-id": "id-1", "h": "v", "msgbus-attempts": "1"}
            assert again.deliveries == 1
            assert list(await subscription.settle([Ack(again)])) == [None]

    kit.run(body())
