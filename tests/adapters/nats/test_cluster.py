"""A cluster of three servers: streams with replicas survive the death of one, clients move to another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import ExitStack
from functools import partial

import pytest

from msgbus.adapter import Source
from msgbus.errors import BrokerUnavailable, TopologyError
from scripts.brokers import BrokerMissing
from scripts.brokers._net import HOST, free_port
from scripts.brokers.fixtures import unavailable
from scripts.brokers.nats import NATS
from tests.adapters.nats.conftest import Kit
from tests.adapters.nats.load import consume_all, publish_all


class Patient(NATS):
    """A server that, once it is a lame duck, says so and throws nobody out for as long as a test may take."""

    def _prepare(self) -> None:
        super()._prepare()
        with (self.folder / "nats.conf").open("a") as file:
            file.write('lame_duck_duration: "300s"\nlame_duck_grace_period: "200s"\n')


class Member(Patient):
    """A server of a cluster.

    Args:
        port: For the others.
        others: Theirs.
    """

    def __init__(self, port: int, others: list[int]) -> None:
        super().__init__()
        self._cluster = port
        self._others = others

    def _prepare(self) -> None:
        super()._prepare()
        routes = ", ".join(f'"nats://{HOST}:{port}"' for port in self._others)
        with (self.folder / "nats.conf").open("a") as file:
            file.write(f'cluster {{ name: "c", listen: "{HOST}:{self._cluster}", routes: [{routes}] }}\n')


def started(stack, *makers):
    """Return servers that end with *stack*."""
    try:
        made = [make() for make in makers]
    except BrokerMissing as exc:
        unavailable(str(exc))
    return [stack.enter_context(server) for server in made]


@pytest.fixture(scope="module")
def members():
    """Three servers that know each other."""
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        others = [[other for other in ports if other != port] for port in ports]
        yield started(stack, *(partial(Member, *both) for both in zip(ports, others, strict=True)))


@pytest.fixture
def kit(members):
    for member in members:
        member.start()  # whichever a test has killed
    kit = Kit(members[0])
    kit.url = "nats://" + ",".join(f"{HOST}:{member.port}" for member in members)
    return kit


async def declare(kit, *items):
    """Declare with three copies, once the cluster has found its leader."""

    async def attempt():
        try:
            async with kit.adapter(*items, query="&replicas=3"):
                return True
        except (BrokerUnavailable, TopologyError):
            return False

    await kit.until(attempt, within=60)


async def leader_of(adapter, stream, members):
    """Return the server that leads *stream*."""
    answer = await adapter.raw.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
    name = json.loads(answer.data)["cluster"]["leader"]
    return next(member for member in members if name == f"msgbus-{member.port}")


def server_of(adapter, members):
    """Return the server that *adapter* is connected to."""
    if adapter.raw is None:
        return None
    return next(member for member in members if member.port == adapter.raw.connected_url.port)


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_the_death_of_a_leader_loses_nothing(kit, members, keyed):
    async def body():
        queue = kit.queue(keyed=keyed)
        source = Source(queue)
        await declare(kit, queue, source)
        async with (
            kit.adapter(queue, source, query="&replicas=3&timeout=2") as publisher,
            kit.adapter(source, query="&replicas=3&timeout=2") as consumer,
        ):
            subscription = await kit.consumer(consumer, source, prefetch=64, lease=5.0)
            messages = [kit.message(queue, f"m{i}", f"k{i % 7}" if keyed else None) for i in range(2000)]
            texts = [m.body.decode() for m in messages]
            consuming = asyncio.create_task(consume_all(kit, subscription, texts))
            await publish_all(kit, publisher, messages[:1000])
            leader = await leader_of(publisher, f"{kit.prefix}-queue-orders", members)
            publishing = asyncio.create_task(publish_all(kit, publisher, messages[1000:]))
            await asyncio.to_thread(leader.kill)
            await publishing
            assert set(await consuming) == set(texts)
            await asyncio.to_thread(leader.start)

    kit.run(body(), within=150)


def test_a_lame_duck_is_left_in_time(kit, members):
    """A server that is about to stop says so; its clients go elsewhere, and nothing fails."""

    async def body():
        queue = kit.queue()
        source = Source(queue)
        await declare(kit, queue, source)
        async with kit.adapter(queue, source, query="&replicas=3") as adapter:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, kit.message(queue, "before"))
            duck = server_of(adapter, members)
            os.kill(duck.pid, signal.SIGUSR2)  # what `nats-server --signal ldm` sends
            await kit.until(lambda: server_of(adapter, members) not in {None, duck}, within=60)
            assert duck.running
            await publish_all(kit, adapter, [kit.message(queue, "after")])
            assert set(await consume_all(kit, subscription, ["before", "after"])) == {"before", "after"}
            await asyncio.to_thread(duck.kill)

    kit.run(body(), within=100)


def test_a_lame_duck_that_knows_no_other_server_is_left_for_one_of_the_url():
    """Servers need not tell clients of each other (``no_advertise``), or even know each other."""

    async def body(servers):
        url = "nats://" + ",".join(f"{HOST}:{server.port}" for server in servers)
        async with kit.adapter(url=url) as adapter:
            duck = server_of(adapter, servers)
            os.kill(duck.pid, signal.SIGUSR2)
            await kit.until(lambda: server_of(adapter, servers) not in {None, duck}, within=60)
            assert duck.running
            await asyncio.to_thread(duck.kill)

    with ExitStack() as stack:
        servers = started(stack, Patient, Patient)
        kit = Kit(servers[0])
        kit.run(body(servers), within=100)


def test_servers_that_are_not_in_the_url_are_found(kit, members):
    """A client that knows one server learns of the others, and survives the death of the one."""

    async def body():
        queue = kit.queue()
        await declare(kit, queue)
        only = f"nats://{HOST}:{members[0].port}"
        async with kit.adapter(url=only, query="&replicas=3&timeout=2") as adapter:
            await asyncio.to_thread(members[0].kill)
            await kit.until(lambda: server_of(adapter, members) in members[1:], within=30)
            await publish_all(kit, adapter, [kit.message(queue, "x")])

    kit.run(body(), within=100)
