"""Declaring, verifying, skipping; names."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from msgbus.adapter import Ack, AdapterConfig, Address, BusURL, Kind, Provision, Source, Topology
from msgbus.errors import ChannelError, ConfigError, TopologyError
from msgbus_rabbitmq import RabbitMQAdapter
from msgbus_rabbitmq._layout import Layout
from msgbus_rabbitmq._options import Options
from tests.adapters.rabbitmq.conftest import nothing, receive, subscribe, take


async def test_declaring_twice_is_the_same(rig):
    sources = [rig.queue(), rig.queue(keyed=True), rig.topic(), rig.topic(keyed=True)]
    async with rig.adapter(*sources) as adapter:
        await adapter.declare(Topology(tuple(s.address for s in sources), tuple(sources)))


async def test_other_arguments_are_an_error_that_says_what_differs(rig):
    source = rig.queue()
    async with rig.adapter(source):
        pass
    async with rig.adapter() as adapter:
        other = Source(Address(Kind.QUEUE, source.address.name, native={"queue_type": "classic"}))
        with pytest.raises(TopologyError, match=f"{source.address.name}.*x-queue-type"):
            await adapter.declare(Topology(sources=(other,)))


async def test_verify_creates_nothing_and_names_all_that_is_missing(rig):
    there, missing = rig.queue(), rig.queue()
    async with rig.adapter(there):
        pass
    async with rig.adapter(there, provision=Provision.VERIFY) as adapter:
        for _ in range(2):
            with pytest.raises(TopologyError, match=rf"missing.*{missing.address.name}.*{missing.address.name}\.dlq"):
                await adapter.declare(Topology(sources=(there, missing)))


async def test_verify_says_what_differs(rig):
    source = rig.queue()
    async with rig.adapter(source):
        pass
    other = Source(Address(Kind.QUEUE, source.address.name, native={"queue_type": "classic"}))
    with pytest.raises(TopologyError, match="x-queue-type"):
        async with rig.adapter(other, provision=Provision.VERIFY):
            pass


async def test_skip_does_not_even_look(rig):
    async with rig.adapter(rig.queue(), provision=Provision.SKIP):
        pass


async def test_a_group_declared_before_the_publish_misses_nothing(rig):
    source = rig.topic()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a")
    async with rig.adapter() as adapter:
        assert await take(await subscribe(adapter, source), 1) == ["a"]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("{}.*", ["{}.a", "{}.b"], ["{}", "{}.a.b"]),
        ("{}.#", ["{}.a", "{}.a.b.c"], ["{}"]),
        ("*.{}", ["x.{}"], ["{}", "x.y.{}"]),
        ("{}.*.c", ["{}.b.c"], ["{}.c", "{}.a.b.c"]),
    ],
)
async def test_patterns(rig, pattern, matching, others):
    base = rig.name("p")
    source = Source(Address(Kind.TOPIC, pattern.format(base)), "g")
    async with rig.adapter(source) as adapter:
        names = [name.format(base) for name in [*others, *matching]]
        await adapter.publish([rig.message(Address(Kind.TOPIC, name), name) for name in names])
        subscription = await subscribe(adapter, source)

        got = await receive(subscription, len(matching))

        assert [name.format(base) for name in matching] == [message.channel for message in got]
        assert [message.body.decode() for message in got] == [message.channel for message in got]
        await nothing(subscription, 0.1)


async def test_partitions_without_a_key_or_from_a_foreign_producer(rig):
    """Without a key messages are spread; without our header they go to the first partition."""
    source = rig.topic(keyed=True)
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, *"abcdefgh")
        adapter.raw.Producer().publish(b"foreign", exchange="msgbus", routing_key=source.address.name)
        subscription = await subscribe(adapter, source)
        got = await receive(subscription, 9)

        queues = {message.receipt.queue for message in got}
        (foreign,) = [message for message in got if message.body == b"foreign"]
        assert len(queues) > 1
        assert foreign.receipt.queue.endswith("#0")
        assert {source.address.name} == {message.channel for message in got}
        assert {"content-type", "ce-id", "ce-type", "ce-specversion"} == set(got[0].headers)


async def test_processes_share_the_partitions(rig):
    source = rig.queue(keyed=True)
    async with rig.adapter(source) as one, rig.adapter() as two:
        subscriptions = [await subscribe(one, source), await subscribe(two, source)]
        counts = [0, 0]
        async with asyncio.timeout(60):
            while counts[1] < 50:
                await rig.publish(one, source, *(f"{n}" for n in range(20)))
                for number, subscription in enumerate(subscriptions):
                    got = await subscription.receive(20, 0.02)
                    await subscription.settle([Ack(message) for message in got])
                    counts[number] += len(got)

        assert all(counts)


async def test_another_partitioning_is_refused(rig):
    source = rig.queue(keyed=True)
    async with rig.adapter(source):
        pass
    for options in ("?partitions=2", "?partitions=8"):
        with pytest.raises(TopologyError, match="partitions"):
            async with rig.adapter(source, options=options):
                pass


@pytest.mark.parametrize("provision", [Provision.CREATE, Provision.VERIFY])
async def test_a_key_where_there_was_none_is_refused_and_the_other_way_round(rig, provision):
    """Else one program's messages would wait in queues that the other does not consume."""
    for keyed, said in ((True, "exists with a key"), (False, "exists without a key")):
        queue, topic = rig.queue(keyed=keyed), rig.topic(keyed=keyed)
        async with rig.adapter(queue, topic):
            pass
        for source in (queue, topic):
            other = replace(source, address=replace(source.address, keyed=not keyed))
            with pytest.raises(TopologyError, match=said):
                async with rig.adapter(other, provision=provision):
                    pass


async def test_two_vhosts_do_not_meet(rig):
    vhost, source = rig.name("vhost"), rig.queue()
    rig.broker.ctl("add_vhost", vhost)
    rig.broker.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    async with rig.adapter(source, url=rig.broker.url + vhost) as there, rig.adapter(source) as here:
        await rig.publish(there, source, "there")
        await rig.publish(here, source, "here")

        assert await take(await subscribe(there, source), 1) == ["there"]
        assert await take(await subscribe(here, source), 1) == ["here"]


async def test_a_second_process_takes_over_the_partitions(rig):
    source = rig.queue(keyed=True)
    async with rig.adapter() as other:
        async with rig.adapter(source) as adapter:
            first = await subscribe(adapter, source)
            second = await subscribe(other, source)
            await rig.publish(adapter, source, *"abcd")
            assert len(await receive(first, 4)) == 4
            await nothing(second, 0.1)

        assert len(await receive(second, 4)) == 4


def test_names_never_meet():
    layout = Layout(Options())
    sources = [
        Source(Address(Kind.QUEUE, "a")),
        Source(Address(Kind.QUEUE, "a"), dead=True),
        Source(Address(Kind.QUEUE, "a.dlq")),
        Source(Address(Kind.QUEUE, "a.dlq"), dead=True),
        Source(Address(Kind.QUEUE, "a.dlq.dlq")),
        Source(Address(Kind.QUEUE, "a", keyed=True)),
        Source(Address(Kind.QUEUE, "amq.a")),
        Source(Address(Kind.REQUEST, "a")),
        Source(Address(Kind.TOPIC, "a"), "g"),
        Source(Address(Kind.TOPIC, "a"), "g", dead=True),
        Source(Address(Kind.TOPIC, "a"), "g.dlq"),
        Source(Address(Kind.TOPIC, "a.g"), "g"),
        Source(Address(Kind.TOPIC, "a"), "g.g"),
        Source(Address(Kind.TOPIC, "a.#"), "g"),
        Source(Address(Kind.TOPIC, "a", keyed=True), "g"),
    ]
    names = [name for source in sources for name in layout.queues(source)]

    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith("amq.") and not name.startswith("amq..")]


def test_a_name_that_is_too_long_is_refused():
    source = Source(Address(Kind.TOPIC, "n" * 150), "g" * 120)

    with pytest.raises(ChannelError, match="longer than"):
        Layout(Options()).queues(source)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("heartbeat=x", "heartbeat"),
        ("heartbeat=-1", "heartbeat"),
        ("partitions=0", "partitions"),
        ("queue_type=stream", "quorum, classic"),
        ("max_body=0", "max_body"),
        ("auth=kerberos", "plain, external"),
        ("key=/k.pem", "cert"),
        ("hartbeat=1", "hartbeat"),
    ],
)
def test_wrong_options_are_refused_by_name(query, message):
    with pytest.raises(ConfigError, match=message):
        RabbitMQAdapter(BusURL.parse(f"amqp://localhost/?{query}"), AdapterConfig())


@pytest.mark.parametrize(("path", "vhost"), [("", "/"), ("/", "/"), ("/a", "a"), ("/a%2Fb", "a/b"), ("/%2F", "/")])
def test_vhosts(path, vhost):
    assert vhost == RabbitMQAdapter(BusURL.parse(f"amqp://localhost{path}"), AdapterConfig())._vhost


@pytest.mark.parametrize("ticks", [1, 2, 3, 127, 128, 129, 1000, 12_345, 9_999_999])
def test_a_delay_is_rounded_up_and_hardly(ticks):
    layout = Layout(Options())
    route = layout.route(Address(Kind.QUEUE, "q"), {})

    levels = [int(name.rpartition(".")[2]) for name in route.delayed(ticks / 10).extra]
    total = sum(1 << level for level in levels)

    assert ticks <= total <= ticks * 1.016
    assert len(levels) <= 7
    assert route.delayed(ticks / 10).exchange == f"msgbus:delay:{max(levels)}"


async def test_removing_leaves_nothing_and_what_was_joined_alone(rig):
    keyed, joined = rig.topic(keyed=True), rig.queue()
    async with rig.adapter(keyed, joined) as adapter:
        native = {"queue": joined.address.name, "declare": False, "dead_letters": rig.name("dead")}
        legacy = Source(Address(Kind.QUEUE, "legacy", native=native))
        await adapter.declare(Topology(sources=(legacy,)))

        for source in (keyed, legacy):
            await adapter.remove(source)
            await adapter.remove(source)

        with pytest.raises(TopologyError):
            await adapter.stats(keyed)
        assert (await adapter.stats(joined)).ready == 0
        assert (await adapter.publish([rig.message(keyed, "a", key="k")])) == [None]
        names = rig.broker.ctl("list_exchanges", "name") + rig.broker.ctl("list_queues", "name")
        assert keyed.address.name not in names
        assert native["dead_letters"] not in names


async def test_the_permissions_that_the_page_names_are_enough(rig):
    user, source = rig.name("user"), rig.queue()
    reply = Source(Address(Kind.REPLY, rig.name("replies")))
    ours = rf"^({source.address.name}|rpc:|reply:|msgbus)"
    url = rig.broker.url.replace("guest:guest", f"{user}:secret")
    rig.broker.ctl("add_user", user, "secret")
    for provision, configure in ((Provision.CREATE, ours), (Provision.VERIFY, "^reply:")):
        rig.broker.ctl("set_permissions", "-p", "/", user, configure, rf"{ours}|^amq\.default", ours)
        async with rig.adapter(source, url=url, provision=provision) as adapter:
            subscription, replies = await subscribe(adapter, source), await subscribe(adapter, reply)
            await rig.publish(adapter, source, "a", delay=0.1)
            await rig.publish(adapter, Source(Address(Kind.REPLY, replies.address)), "b")
            assert await take(subscription, 1) == ["a"]
            assert await take(replies, 1) == ["b"]
