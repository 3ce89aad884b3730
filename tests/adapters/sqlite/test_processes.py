"""Several processes on one file: nothing lost, nothing held twice, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from msgbus.adapter import Ack, Address, Kind, Source

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture
def spawn(kit):
    """Start a worker; whatever is still running at the end of the test is killed."""
    started: list[Popen[str]] = []

    def start(role: str, *arguments: object) -> Popen[str]:
        command = [sys.executable, str(WORKER), role, str(kit.path), *map(str, arguments)]
        started.append(Popen(command, stdin=PIPE, stdout=PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def finish(processes: list[Popen[str]]) -> list[str]:
    """Return the lines that the processes printed until they ended well."""
    lines = []
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        lines += output.splitlines()
    return lines


@pytest.mark.parametrize("keyed", ["no", "yes"])
def test_four_producers_and_four_consumers_lose_nothing_and_hold_nothing_twice(kit, spawn, keyed):
    queue, each = Address(Kind.QUEUE, f"keyed-{keyed}", keyed == "yes"), 1500

    async def prepare():
        async with kit.adapter(queue):
            pass

    async def wait_until_empty():
        async with kit.adapter() as adapter:
            deadline = time.monotonic() + 60
            while await adapter.browse(Source(queue), limit=1):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

    kit.run(prepare())
    consumers = [spawn("consume", keyed) for _ in range(4)]
    finish([spawn("produce", keyed, first, each) for first in range(0, 4 * each, each)])
    kit.run(wait_until_empty())
    lines = [line.split() for line in finish(consumers)]

    assert sorted(range(4 * each)) == sorted(int(number) for number, *_ in lines)
    if keyed == "yes":
        assert {"1"} == {deliveries for _, _, deliveries, *_ in lines}
        by_key = sorted((key, float(start), float(end), int(number)) for number, key, _, start, end in lines)
        for _, messages in itertools.groupby(by_key, key=lambda line: line[0]):
            spans = list(messages)
            assert [number for *_, number in spans] == sorted(number for *_, number in spans)
            for (_, start, end, _), (_, later, _, _) in itertools.pairwise(spans):
                assert later == start or later >= end  # the same hand-over, or a later one


def test_what_a_killed_process_held_comes_back_when_its_lease_ends(kit, spawn):
    queue = Address(Kind.QUEUE, "keyed-yes", keyed=True)

    async def body():
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n), f"k{n % 3}") for n in range(9)))
            holder = spawn("hold", "yes", 2)
            assert await asyncio.to_thread(holder.stdout.readline) == "9\n"
            held_until = (await adapter.stats(Source(queue))).next_due
            consumer = await kit.consumer(adapter, Source(queue))
            holder.kill()
            assert await consumer.receive(9, 0.05) == []
            received = await consumer.receive(9, 10)
            assert held_until <= time.time() < held_until + 1
            while len(received) < 9:
                received = [*received, *await consumer.receive(9, 1)]
            assert {2} == {message.deliveries for message in received}

    kit.run(body())


def test_a_publish_waits_for_another_processs_lock(kit, spawn):
    async def body():
        async with kit.adapter(kit.queue()) as adapter:
            locker = spawn("lock", 1)
            assert await asyncio.to_thread(locker.stdout.readline) == "locked\n"
            start, ticks = time.monotonic(), 0
            call = asyncio.create_task(adapter.publish([kit.message(kit.queue(), "x")]))
            while not call.done():
                ticks += 1
                await asyncio.sleep(0.01)
            assert await call == [None]
            assert 0.8 < time.monotonic() - start < 5
            assert ticks > 20  # the event loop was free all the time

    kit.run(body())


def test_a_waiting_consumer_hears_of_another_processs_messages_soon(kit, spawn):
    queue, replies = Address(Kind.QUEUE, "keyed-no"), Source(Address(Kind.REPLY, "replies"))

    async def body():
        async with kit.adapter(queue) as adapter:
            responder = spawn("echo", "no")
            assert await asyncio.to_thread(responder.stdout.readline) == "ready\n"
            consumer = await kit.consumer(adapter, replies)
            trips = []
            for _ in range(20):
                start = time.monotonic()
                await kit.publish(adapter, kit.message(queue, consumer.address))
                (answer,) = await consumer.receive(1, 10)
                trips.append(time.monotonic() - start)
                await consumer.settle([Ack(answer)])
            assert sorted(trips)[10] < 0.5  # twice the pollers' longest pause, ten times over

    kit.run(body())


def test_a_killed_producer_leaves_whole_batches(kit, spawn):
    queue = Address(Kind.QUEUE, "keyed-no")

    async def body():
        async with kit.adapter(queue) as adapter:
            producer = spawn("produce", "no", 0, 100_000)
            while (await adapter.stats(Source(queue))).ready < 200:  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.01)
            producer.kill()
            await asyncio.to_thread(producer.wait)
            consumer, numbers = await kit.consumer(adapter, Source(queue), prefetch=1000), []
            while received := await consumer.receive(1000, 0):
                numbers += [int(message.headers["ce-id"]) for message in received]
                await kit.ack(consumer, received)
            assert list(range(len(numbers))) == numbers

    kit.run(body())


def test_of_eight_processes_one_wins_each_claim(kit, spawn):
    granted = finish([spawn("claim", 200) for _ in range(8)])

    assert sorted(map(str, range(200))) == sorted(granted)
