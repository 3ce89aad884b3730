"""Faults: a broker that restarts or dies, connections that break, a topic that is deleted, a member that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections import Counter

import pytest

from msgbus.adapter import Ack
from msgbus.errors import BrokerError, LeaseLost, PublishTimeout, Unroutable
from msgbus_kafka import _cluster


class Flow:
    """Publishes numbers through one adapter and consumes them through another, as the core does."""

    def __init__(self, kit, total):
        self.kit = kit
        self.total = total
        self.confirmed: set[int] = set()
        self.seen: Counter[int] = Counter()
        self.reds = 0

    async def publish(self, adapter, source):
        left = list(range(self.total))
        while left:
            batch, left = left[:50], left[50:]
            results = await adapter.publish([self.kit.message(source.address, n) for n in batch])
            for number, error in zip(batch, results, strict=True):
                if error is None:
                    self.confirmed.add(number)
                else:
                    assert error.retryable, repr(error)
                    left.append(number)
            await asyncio.sleep(0.02)

    async def consume(self, adapter, source):
        subscription = await self.kit.subscribe(adapter, source, prefetch=100)
        while len(self.seen) < self.total:
            try:
                got = await subscription.receive(100, 0.5)
            except BrokerError:
                await asyncio.sleep(0.1)
                continue
            self.seen.update(int(message.body) for message in got)
            await subscription.settle([Ack(message) for message in got])
        await subscription.aclose()

    async def watch(self, adapter):
        while True:
            self.reds += not adapter.health.ok
            await asyncio.sleep(0.05)

    async def run(self, adapter, source, faults):
        watching = asyncio.create_task(self.watch(adapter))
        work = [asyncio.create_task(self.publish(adapter, source)), asyncio.create_task(self.consume(adapter, source))]
        await self.kit.until(lambda: len(self.seen) >= self.total // 4)
        await faults()
        await asyncio.wait_for(asyncio.gather(*work), 200)
        await self.kit.until(lambda: adapter.health.ok)
        watching.cancel()

    @property
    def duplicates(self):
        return sum(self.seen.values()) - len(self.seen)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_broker_that_goes_and_comes_back(kit, how, record_property):
    """All that was confirmed is consumed; health was red meanwhile and is green again."""

    async def main():
        source = kit.queue()
        flow = Flow(kit, 2000)

        async def fault():
            await asyncio.to_thread(kit.broker.stop if how == "restart" else kit.broker.kill)
            await asyncio.sleep(2)
            await asyncio.to_thread(kit.broker.start)

        async with kit.adapter(source) as adapter:
            await flow.run(adapter, source, fault)
        return flow

    flow = None

    async def keep():
        nonlocal flow
        flow = await main()

    kit.run(keep())
    print(f"\n{how}: {flow.duplicates} duplicates")
    record_property("duplicates", flow.duplicates)
    assert flow.confirmed == set(flow.seen) == set(range(flow.total))
    assert flow.reds > 0
    assert flow.duplicates < 300


def test_connections_that_break_again_and_again(kit):
    async def main():
        source = kit.queue()
        flow = Flow(kit, 3000)
        with kit.broker.proxy() as proxy:

            async def faults():
                for _ in range(5):
                    proxy.drop()
                    await asyncio.sleep(0.3)
                proxy.cut()
                await asyncio.sleep(5)
                proxy.heal()

            async with kit.adapter(source, url=kit.broker.url_through(proxy)) as adapter:
                await flow.run(adapter, source, faults)
        assert flow.confirmed == set(flow.seen) == set(range(flow.total))
        assert flow.reds > 0

    kit.run(main())


def test_a_connection_on_which_nothing_moves(kit):
    async def main():
        source = kit.queue()
        flow = Flow(kit, 2000)
        with kit.broker.proxy() as proxy:

            async def faults():
                proxy.stall()
                await asyncio.sleep(6)
                proxy.heal()

            async with kit.adapter(source, url=kit.broker.url_through(proxy)) as adapter:
                await flow.run(adapter, source, faults)
        assert flow.confirmed == set(flow.seen) == set(range(flow.total))
        assert flow.reds > 0

    kit.run(main())


def test_a_topic_that_is_deleted_and_made_again(kit):
    """Publishing is told, consuming waits; both go on when the topic is back."""

    async def main():
        source = kit.queue()
        async with kit.adapter(source) as adapter, kit.admin() as admin:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(40)))
            subscription = await kit.subscribe(adapter, source, prefetch=100)
            await kit.drain(subscription, 40)
            await admin.delete_topics([source.address.name])

            async def refused():
                (error,) = await adapter.publish([kit.message(source.address, "nowhere")])
                return isinstance(error, Unroutable)

            for _ in range(30):
                if await refused():
                    break
                await asyncio.sleep(0.5)
            else:
                raise AssertionError("publishing to the deleted topic was never refused")
            assert await subscription.receive(1, 0.5) == []
            await kit.declare(adapter, source)
            await kit.publish(adapter, *(kit.message(source.address, f"new-{n}") for n in range(8)))
            got = await kit.drain(subscription, 8)
            assert {m.body for m in got} == {b"new-%d" % n for n in range(8)}

    kit.run(main())


WORKER = """
import asyncio, sys
from msgbus.adapter import AdapterConfig, Ack, Address, BusURL, Kind, Source, SubscribeOptions
from msgbus_kafka import KafkaAdapter

async def main(url, name):
    adapter = KafkaAdapter(BusURL.parse(url), AdapterConfig(instance="worker"))
    await adapter.open()
    subscription = await adapter.subscribe(Source(Address(Kind.QUEUE, name)), SubscribeOptions(prefetch=30))
    got = []
    while len(got) < 30:
        got += await subscription.receive(30, 1)
    await subscription.settle([Ack(m) for m in got if int(m.body) % 2])
    await asyncio.sleep(1)
    print("half", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_member_that_is_killed_or_hangs(kit, how):
    """Its unsettled messages go to another one, its settled ones do not, not even those above the gaps."""

    async def main():
        source = kit.queue(partitions=1)
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(30)))
            command = [sys.executable, "-c", WORKER, f"{kit.broker.url}?session_timeout=2", source.address.name]
            worker = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            try:
                assert await worker.stdout.readline() == b"half\n"
                worker.send_signal(how)
                subscription = await kit.subscribe(adapter, source)
                got = await kit.take(subscription, 15)
                assert sorted(int(m.body) for m in got) == list(range(0, 30, 2))
                if how == signal.SIGSTOP:
                    worker.send_signal(signal.SIGCONT)  # it finds its partitions gone, and disturbs nobody
                    await asyncio.sleep(1.5)
                results = await subscription.settle([Ack(message) for message in got])
                assert all(error is None or isinstance(error, LeaseLost) for error in results)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    worker.kill()
                await worker.wait()

    kit.run(main())


def test_a_broker_that_is_not_there(kit):
    async def main():
        with pytest.raises(BrokerError, match="127.0.0.1:1"):
            async with kit.adapter(url="kafka://127.0.0.1:1"):
                raise AssertionError("it opened")

    kit.run(main())


def test_a_topic_that_cannot_be_asked_after_is_not_missing(kit, monkeypatch):
    """While the broker is away, a publish to a topic never used before is to be tried again, not unroutable."""
    monkeypatch.setattr(_cluster, "_REQUEST_TIMEOUT", 3.0)

    async def main():
        source = kit.queue()
        with kit.broker.proxy() as proxy:
            async with kit.adapter(source, url=kit.broker.url_through(proxy), query="&delivery_timeout=3") as adapter:
                proxy.cut()
                for delay in (0.0, 1.0):
                    (error,) = await adapter.publish([kit.message(source.address, "x", delay=delay)])
                    assert error.retryable or isinstance(error, PublishTimeout), repr(error)
                proxy.heal()
                await kit.publish(adapter, kit.message(source.address, "x"), kit.message(source.address, "x", delay=1))

    kit.run(main())


def test_nothing_is_left_behind(kit):
    """No task outlives an adapter, whatever it was doing, and closing takes no longer than it must."""

    async def main():
        before = asyncio.all_tasks()
        source, (topic,) = kit.queue(), kit.topic("group")
        async with kit.adapter(source, topic) as adapter:
            subscription = await kit.subscribe(adapter, source)
            await kit.subscribe(adapter, topic)
            waiting = asyncio.create_task(subscription.receive(1, 30))
            await kit.publish(adapter, kit.message(topic.address, "later", delay=600))
            await kit.publish(adapter, kit.message(source.address, "now"))
            await waiting
            started = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - started < 5
        await kit.until(lambda: asyncio.all_tasks() == before, 1)

    kit.run(main())


def test_a_client_whose_metadata_task_died_keeps_its_metadata(kit):
    """Uvloop raises RuntimeError on a connection that was closed a moment ago; the library's task dies of it."""

    async def body():
        async with kit.adapter() as adapter:
            client, died = adapter._cluster._client, asyncio.Event()
            update = client._metadata_update

            async def broken(*args):
                client._metadata_update = update
                died.set()
                raise RuntimeError("the handler is closed")

            client._metadata_update = broken
            updating = client.force_metadata_update()
            await died.wait()
            assert await asyncio.wait_for(updating, 30)
        assert client._sync_task is None

    kit.run(body())


def test_closing_does_not_mind_a_client_that_is_broken(kit):
    """Whoever closes cannot do anything about it."""

    async def body():
        async with kit.adapter() as adapter:
            client = adapter._cluster._client
            close = client.close

            async def broken():
                await close()
                raise RuntimeError("the handler is closed")

            client.close = broken

    kit.run(body())


@pytest.mark.parametrize("what", ["sends", "fetches"])
def test_the_end_of_a_task_of_the_library_is_not_the_end_of_the_consuming(kit, what):
    """Uvloop raises RuntimeError on a connection that was just closed: the library's tasks would end, and not tell."""

    async def main():
        source = kit.queue()
        async with kit.adapter(source) as adapter:
            subscription = await kit.subscribe(adapter, source)
            consumer, broke = subscription._consumer._consumer, asyncio.Event()
            (connection,) = [c for (_, group), c in consumer._client._conns.items() if not group]
            owner, name = connection._writer, "write"
            if what == "fetches":
                owner, name = consumer._fetcher, "_get_actions_per_node"
            intact = getattr(owner, name)

            def fail(*_):
                setattr(owner, name, intact)
                broke.set()
                raise RuntimeError("the handler is closed")

            setattr(owner, name, fail)
            await asyncio.wait_for(broke.wait(), 60)
            await kit.publish(adapter, kit.message(source.address, "after it"))
            got = []
            async with asyncio.timeout(90):
                while not got:
                    with contextlib.suppress(BrokerError):
                        got = await subscription.receive(1, 1.0)
            assert got[0].body == b"after it"

    kit.run(main())
