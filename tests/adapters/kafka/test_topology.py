"""Topics: created as declared, compared with what is there, and named so that nothing meets anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgbus.adapter import Ack, Address, DeadLetter, Kind, Outgoing, Provision, Source, is_pattern
from msgbus.errors import BrokerError, ChannelError, ConfigError, TopologyError, UnsupportedFeature
from msgbus_kafka._names import channel_regex, dead_of, delay_of, group_of, replies_of, retries_of, topic_of


def test_topics_are_created_as_the_channel_says(kit):
    async def main():
        native = {
            "partitions": 3,
            "replication": 1,
            "retention": 3600,
            "compact": True,
            "config": {"min.insync.replicas": 1},
        }
        source = kit.queue(**native)
        async with kit.adapter(source) as adapter, kit.admin() as admin:
            name = source.address.name
            expected = {name: 3, f"{name}..dlq": 1, **{f"{name}..retry.{step}": 1 for step in (60, 3600, 86400)}}
            described = await admin.describe_topics(list(expected))
            assert {t["topic"]: len(t["partitions"]) for t in described} == expected
            configs = await adapter._cluster.configs([name, f"{name}..dlq"])
            assert configs[name]["retention.ms"] == "3600000"
            assert configs[name]["cleanup.policy"] == "compact"
            assert configs[f"{name}..dlq"]["retention.ms"] == "-1"

    kit.run(main())


@pytest.mark.parametrize(
    ("native", "text"),
    [
        ({"partitions": 2}, "has 4 partitions, declared with 2"),
        ({"replication": 3}, "has 1 replicas, declared with 3"),
        ({"retention": 60}, "retention.ms=604800000, declared with 60000"),
        ({"compact": True}, "cleanup.policy=delete, declared with compact"),
        ({"config": {"max.message.bytes": 5}}, "max.message.bytes=1048588, declared with 5"),
    ],
)
def test_what_differs_is_named(kit, native, text):
    async def main():
        source = kit.queue()
        async with kit.adapter(source):
            different = Address(Kind.QUEUE, source.address.name, native=native)
            for provision in (Provision.CREATE, Provision.VERIFY):
                with pytest.raises(TopologyError, match=text):
                    async with kit.adapter(different, provision=provision):
                        raise AssertionError("it was declared")
            async with kit.adapter(different, provision=Provision.SKIP):
                pass

    kit.run(main())


def test_verify_names_all_that_is_missing_and_creates_nothing(kit):
    async def main():
        source = kit.queue()
        async with kit.admin() as admin:
            with pytest.raises(TopologyError) as caught:
                async with kit.adapter(source, provision=Provision.VERIFY):
                    raise AssertionError("it was declared")
            for topic in (source.address.name, dead_of(source), *retries_of(source).values()):
                assert repr(topic) in str(caught.value)
            assert source.address.name not in await admin.list_topics()

    kit.run(main())


def test_names_that_kafka_takes_for_one_are_refused_by_name(kit):
    async def main():
        base = kit.name()
        async with kit.adapter(Address(Kind.QUEUE, f"{base}.a_b")) as adapter:
            with pytest.raises(ChannelError, match="collides"):
                await kit.declare(adapter, Address(Kind.QUEUE, f"{base}.a.b"))
            with pytest.raises(ChannelError, match="would share the Kafka topic"):
                await kit.declare(adapter, Address(Kind.TOPIC, f"{base}.a_b"))

    kit.run(main())


@pytest.mark.parametrize(
    ("native", "text"),
    [
        ({"partitons": 3}, "no native option 'partitons'"),
        ({"partitions": 0}, "whole number from 1"),
        ({"partitions": "3"}, "whole number from 1"),
        ({"topic": "no spaces"}, "letters, digits"),
        ({"start": "middle"}, "'earliest' or 'latest'"),
    ],
)
def test_native_options_are_checked(kit, native, text):
    async def main():
        async with kit.adapter() as adapter:
            with pytest.raises(ChannelError, match=text):
                await kit.declare(adapter, Source(Address(Kind.TOPIC, kit.name(), native=native), "group"))

    kit.run(main())


words = st.text("abzAZ09_-", min_size=1, max_size=6)
names = st.lists(words, min_size=1, max_size=4).map(".".join)
patterns = st.lists(words | st.just("*"), min_size=1, max_size=4).map(".".join) | names.map(lambda n: f"{n}.#")
sources = st.builds(lambda name: Source(Address(Kind.QUEUE, name)), names) | st.builds(
    lambda name, group, keyed: Source(Address(Kind.TOPIC, name, keyed), group), patterns, names, st.booleans()
)


@given(st.sets(sources, min_size=2, max_size=8))
def test_no_two_subscriptions_share_a_topic_or_a_group(found):
    kinds = {}
    for source in found:
        if not is_pattern(source.address.name) and kinds.setdefault(source.address.name, source.address.kind) != (
            source.address.kind
        ):
            return  # refused when declared
    # Whether a channel is keyed is not part of its name, and refused too when it changes.
    distinct = {(s.address.kind, s.address.name, s.group): s for s in found}.values()
    owners: dict[str, object] = {}
    for source in distinct:
        for topic in (dead_of(source), *retries_of(source).values()):
            assert owners.setdefault(topic, source) == source
        if not is_pattern(source.address.name):
            channel = (source.address.kind, source.address.name)
            assert owners.setdefault(topic_of(source.address), channel) == channel
            if source.address.kind is Kind.TOPIC:
                for topic in delay_of(source.address).values():
                    assert owners.setdefault(topic, channel) == channel
    groups = [group_of(source) for source in distinct] + [group_of(source.dead_letters) for source in distinct]
    assert len(set(groups)) == len(groups)


def test_a_pattern_does_not_match_side_topics():
    import re

    source = Source(Address(Kind.TOPIC, "order.#"), "mail")
    regex = channel_regex(source)
    assert re.match(regex, "order.placed.today")
    assert re.match(regex, ".order._23..mail..retry.60")
    for other in ("order", "order.placed..mail..dlq", "order.placed..delay.60", "order.placed..mail..retry.60"):
        assert not re.match(regex, other)


def test_too_long_names_are_refused_when_declared():
    source = Source(Address(Kind.TOPIC, "t" * 120), "g" * 120)
    with pytest.raises(ChannelError, match="249"):
        retries_of(source)
    assert replies_of("my shop/1") == "my_20shop_2f1..replies"


def test_dead_letters_are_paged_dropped_and_replayed(kit):
    async def main():
        source, other = kit.topic("one", "two")
        async with kit.adapter(source, other) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(12)))
            subscription = await kit.subscribe(adapter, source, prefetch=50)
            got = await kit.take(subscription, 12)
            await subscription.settle([DeadLetter(message, dict(message.headers)) for message in got])
            assert (await adapter.stats(source)).dead == 12

            pages, after = [], None
            while page := await adapter.browse(source.dead_letters, limit=5, after=after):
                pages.append(page)
                after = str(page[-1].position)
            assert [len(page) for page in pages] == [5, 5, 2]
            assert sorted(int(m.body) for page in pages for m in page) == list(range(12))

            admin = await kit.subscribe(adapter, source.dead_letters, prefetch=50)
            dead = {int(m.body): m for m in await kit.take(admin, 12)}
            await admin.settle([Ack(dead[n]) for n in (0, 3, 11)])
            replayed = dead[5]
            copy = Outgoing(source, replayed.body, replayed.headers, "id", replayed.key)
            await kit.publish(adapter, copy)
            await admin.settle([Ack(replayed)])
            await admin.aclose()

            left = await adapter.browse(source.dead_letters, limit=50)
            assert sorted(int(m.body) for m in left) == [1, 2, 4, 6, 7, 8, 9, 10]
            assert {m.channel for m in left} == {source.address.name}
            assert (await adapter.stats(source)).dead == 8
            (again,) = await kit.drain(subscription, 1)
            assert (again.body, again.channel) == (b"5", source.address.name)
            others = await kit.subscribe(adapter, other, prefetch=50)
            assert len(await kit.drain(others, 12)) == 12
            assert await others.receive(1, 0.5) == []

    kit.run(main())


def test_looking_at_what_is_not_there(kit):
    async def main():
        source = kit.queue()
        pattern = Source(Address(Kind.TOPIC, "x.*"), "group")
        async with kit.adapter() as adapter:
            for call in (adapter.stats(source), adapter.browse(source, limit=1), kit.subscribe(adapter, source)):
                with pytest.raises(TopologyError, match=source.address.name):
                    await call
            with pytest.raises(UnsupportedFeature):
                await adapter.browse(pattern, limit=1)
            with pytest.raises(UnsupportedFeature):
                await kit.subscribe(adapter, pattern, start=5)
            await kit.declare(adapter, source)
            with pytest.raises(ConfigError, match="whole number"):
                await adapter.browse(source, limit=1, after="0:1")

    kit.run(main())


def test_removing_leaves_nothing_behind(kit):
    async def main():
        queue, (one, two) = kit.queue(), kit.topic("one", "two")
        async with kit.adapter(queue, one, two) as adapter, kit.admin() as admin:
            for source in (queue, one, two):
                await kit.publish(adapter, kit.message(source.address, "x"))
                subscription = await kit.subscribe(adapter, source)
                (message,) = await kit.take(subscription, 1)
                await subscription.settle([DeadLetter(message, dict(message.headers))])
                with pytest.raises(BrokerError, match="NonEmptyGroup"):
                    await adapter.remove(source)
                await subscription.aclose()
            await adapter.remove(queue)
            await adapter.remove(one)
            await adapter.remove(one)

            left = await admin.list_topics()
            assert [topic for topic in left if topic.startswith(queue.address.name)] == []
            ours = {topic for topic in left if topic.startswith(one.address.name)}
            assert ours == {one.address.name, dead_of(two), *retries_of(two).values()}
            groups = {name for name, *_ in await admin.list_consumer_groups()}
            assert group_of(two) in groups
            assert not groups & {group_of(queue), group_of(one), group_of(one.dead_letters)}

    kit.run(main())
