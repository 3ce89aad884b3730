"""Cut connections, silent peers, restarts and kills: nothing confirmed is lost, and everything repairs itself."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import pytest

from msgbus.adapter import Ack, Topology
from msgbus.errors import AccessDenied, BrokerUnavailable
from msgbus.testing.faults import FaultProxy
from tests.adapters.rabbitmq.conftest import PATIENCE, eventually, persist, receive, subscribe, take


@pytest.fixture
def proxy(broker):
    parts = urlsplit(broker.url)
    with FaultProxy(parts.hostname, parts.port) as proxy:
        proxy.url = f"amqp://guest:guest@{proxy.host}:{proxy.port}/"
        yield proxy


async def consume_until(subscription, wanted):
    """Receive and ack until each of *wanted* was seen; return how many came more than once."""
    seen, extra = set(), 0
    async with asyncio.timeout(3 * PATIENCE):
        while not wanted <= seen:
            try:
                got = await subscription.receive(100, 1.0)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
                continue
            for message in got:
                text = message.body.decode()
                extra += text in seen
                seen.add(text)
            await subscription.settle([Ack(message) for message in got])
    assert wanted == seen
    return extra


async def publish_all(rig, adapter, source, texts, fault=None):
    for first in range(0, len(texts), 50):
        batch = texts[first : first + 50]
        assert [None] * len(batch) == await persist(adapter, [rig.message(source, text) for text in batch])
        if fault is not None:
            await fault(first + len(batch))


async def test_dropped_connections_lose_nothing(rig, proxy):
    source = rig.queue()
    texts = [str(i) for i in range(2000)]

    async def drop(done):
        if done % 400 == 0:
            proxy.drop()

    async with rig.adapter(source, url=proxy.url) as adapter:
        subscription = await subscribe(adapter, source)
        consuming = asyncio.ensure_future(consume_until(subscription, set(texts)))
        await publish_all(rig, adapter, source, texts, drop)

        assert await consuming < 2000


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_the_broker_restarts(rig, how):
    if not rig.broker.controllable:
        pytest.skip("this broker is not ours to stop")
    source = rig.queue()
    texts = [str(i) for i in range(1500)]
    health = []

    async def fault(done):
        if done == 700:
            if how == "kill":
                await asyncio.to_thread(rig.broker.kill)
            await asyncio.to_thread(rig.broker.restart if how == "restart" else rig.broker.start)

    async def watch(adapter):
        while True:
            health.append(adapter.health.ok)
            await asyncio.sleep(0.02)

    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        watching = asyncio.ensure_future(watch(adapter))
        consuming = asyncio.ensure_future(consume_until(subscription, set(texts)))
        await publish_all(rig, adapter, source, texts, fault)
        await consuming
        watching.cancel()

        assert {True, False} == set(health)
        assert adapter.health.ok


async def test_acked_stays_acked_over_a_restart(rig):
    if not rig.broker.controllable:
        pytest.skip("this broker is not ours to stop")
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "acked", "held")
        await rig.publish(adapter, source, "delayed", delay=2.0)
        subscription = await subscribe(adapter, source)
        (first, _) = await receive(subscription, 2)
        await subscription.settle([Ack(first)])
        await adapter.stats(source)  # a round trip: the ack is there
        await asyncio.to_thread(rig.broker.restart)

        assert await take(subscription, 2) == ["held", "delayed"]


async def test_a_silent_peer_is_given_up(rig, proxy):
    """Nothing is closed, nothing answers: heartbeats notice."""
    source = rig.queue()
    async with rig.adapter(source, url=proxy.url, options="?heartbeat=1") as adapter:
        subscription = await subscribe(adapter, source)
        await rig.publish(adapter, source, "before")
        assert await take(subscription, 1) == ["before"]
        proxy.stall()
        start = time.monotonic()
        await eventually(lambda: not adapter.health.ok, "health notices")
        noticed = time.monotonic() - start
        proxy.heal()

        assert noticed < 15  # two heartbeats, and some for a busy machine; TCP takes minutes
        assert await persist(adapter, [rig.message(source, "after")]) == [None]
        assert await take(subscription, 1) == ["after"]


async def test_an_idle_connection_lives(rig):
    async with rig.adapter(options="?heartbeat=2") as adapter:
        wire = adapter._publishing.require()
        await asyncio.sleep(7.0)  # the broker closes after 4 s of silence

        assert wire.is_open
        assert adapter.health.ok


async def test_a_cut_publish_link_leaves_consuming_alone(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        await rig.publish(adapter, source, "a")
        (message,) = await receive(subscription, 1)
        adapter._publishing.require().abort(ConnectionResetError("cut"))

        assert await subscription.settle([Ack(message)]) == [None]
        assert await persist(adapter, [rig.message(source, "b")]) == [None]
        assert await take(subscription, 1) == ["b"]


async def test_random_cuts_lose_nothing(rig, proxy):
    source = rig.queue(keyed=True)
    texts = [str(i) for i in range(600)]
    async with rig.adapter(source, url=proxy.url) as adapter:
        subscription = await subscribe(adapter, source)
        consuming = asyncio.ensure_future(consume_until(subscription, set(texts)))
        proxy.cut_randomly(0.02, seed=1)
        await publish_all(rig, adapter, source, texts)
        proxy.heal()
        await consuming


async def test_the_next_host_is_tried(rig, proxy):
    parts = urlsplit(rig.broker.url)
    url = f"amqp://guest:guest@127.0.0.1:1,{proxy.host}:{proxy.port},{parts.hostname}:{parts.port}/"
    source = rig.queue()
    async with rig.adapter(source, url=url) as adapter:
        subscription = await subscribe(adapter, source)
        proxy.cut()
        assert await persist(adapter, [rig.message(source, "a")]) == [None]

        assert await take(subscription, 1) == ["a"]
        assert proxy.connections == 0


async def test_no_broker_is_said_at_once_and_without_the_password(rig):
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1") as caught:
        async with rig.adapter(url="amqp://guest:hunter2@127.0.0.1:1/"):
            pass

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["amqp://guest:wrong@{}/", "amqp://guest:guest@{}/no-such-vhost"])
async def test_wrong_credentials_and_vhosts_are_told_apart_from_outages(rig, url):
    with pytest.raises(AccessDenied) as caught:
        async with rig.adapter(url=url.format(rig.broker.url.rpartition("@")[2].rstrip("/"))):
            pass

    assert "wrong" not in str(caught.value)


async def test_a_peer_that_speaks_something_else_is_an_outage(rig):
    async def hello(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BrokerUnavailable):
            async with rig.adapter(url=f"amqp://127.0.0.1:{port}/"):
                pass


async def test_declaring_begins_again_when_the_connection_is_lost_meanwhile(rig):
    source = rig.queue()
    async with rig.adapter() as adapter:
        connect = adapter._declarer._connect

        def cut_once():
            adapter._declarer._connect = connect
            raise ConnectionResetError("cut")

        adapter._declarer._connect = cut_once
        await adapter.declare(Topology(sources=(source,)))

        await rig.publish(adapter, source, "a")
