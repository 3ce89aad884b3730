"""`make bench-kafka`: Kafka beside its own client and beside FastStream: the same work, in one run, in turn.

Every case publishes or handles all of its messages and counts them; a lost one ends the run instead of making a
figure. Each contender gets its best settings for at-least-once: confirmed by all replicas, an idempotent producer,
large batches, no log lines. Rounds are interleaved, so that whatever else the machine does hits all alike.

Usage: python -m tests.bench.kafka [--rounds N] [--only publish,consume,batch,latency,keys] [--json FILE] [--url URL]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import platform
import random
import secrets
import statistics
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from pydantic import BaseModel, TypeAdapter

from msgbus import Bus, Queue
from scripts.brokers import start

GROUP = "bench"
PARTITIONS = 6
_PATIENCE = 120.0


class Item(BaseModel):
    number: int
    text: str


TEXT = "x" * 200
decode = TypeAdapter(Item).validator.validate_json


def items(count: int) -> list[Item]:
    """Return the payloads, out of the garbage collector's sight: what a benchmark holds is not the contenders' cost."""
    found = [Item(number=n, text=TEXT) for n in range(count)]
    gc.collect()
    gc.freeze()
    return found


@dataclass(frozen=True)
class Figure:
    """What one run took: *rate* in messages per second, *seconds* in all, *cpu* microseconds of ours per message."""

    rate: float
    seconds: float
    cpu: float


class Watch:
    """A stop-watch for *count* messages."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._cpu, self._begun = time.process_time(), time.perf_counter()

    def stop(self) -> Figure:
        took = time.perf_counter() - self._begun
        return Figure(self._count / took, took, (time.process_time() - self._cpu) / self._count * 1e6)


@dataclass(frozen=True)
class Case:
    """One contender of one comparison."""

    group: str
    name: str
    run: Callable[[], Awaitable[Figure]]


class Done:
    """Counts handled messages, by number; raises for what is missing or came twice."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen = bytearray(count)
        self._calls = 0
        self._event = asyncio.Event()
        self._watch: Watch | None = None

    def note(self, number: int) -> None:
        if self._watch is None:
            self._watch = Watch(self._count)
        self._seen[number] = 1
        self._calls += 1
        if self._calls >= self._count:
            self._event.set()

    async def figure(self) -> Figure:
        """Return what it took from the first message to the last one."""
        await asyncio.wait_for(self._event.wait(), _PATIENCE)
        assert self._watch is not None
        figure = self._watch.stop()
        if sum(self._seen) != self._count or self._calls != self._count:
            sys.exit(f"{sum(self._seen)} different messages in {self._calls} calls instead of {self._count}")
        return figure


class Bench:
    """The cases, on one broker."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.servers = url.partition("://")[2]

    def queue(self, *, partitions: int = PARTITIONS, keyed: bool = False) -> Queue[Item]:
        native = {"partitions": partitions}
        return Queue(f"bench-{secrets.token_hex(4)}", Item, native=native, key="text" if keyed else None)

    async def filled(self, queue: Queue[Item], messages: list[Item]) -> None:
        async with Bus(self.url) as bus:
            await bus.send_many(queue, messages)

    async def created(self, queue: Queue[Item]) -> str:
        bus = Bus(self.url)
        bus.on(queue)(_nothing)
        async with bus:
            return queue.name

    # -- publishing ---------------------------------------------------------------------------------------------

    async def publish_many(self, count: int) -> Figure:
        queue = self.queue()
        await self.created(queue)
        messages = items(count)
        async with Bus(self.url) as bus:
            await bus.send_many(queue, messages[:100])
            watch = Watch(count)
            await bus.send_many(queue, messages)
            return watch.stop()

    async def publish_each(self, count: int) -> Figure:
        queue = self.queue()
        await self.created(queue)
        async with Bus(self.url) as bus:

            async def send(item: Item) -> None:
                await bus.send(queue, item)

            return await _gathered(send, items(count))

    async def publish_raw(self, count: int) -> Figure:
        topic = await self.created(self.queue())
        producer = AIOKafkaProducer(bootstrap_servers=self.servers, **_PRODUCER)
        await producer.start()
        try:
            await producer.send_and_wait(topic, b"warm")
            bodies = items(count)
            watch = Watch(count)
            futures = [await producer.send(topic, item.model_dump_json().encode(), headers=_HEADERS) for item in bodies]
            for future in futures:
                await future
            return watch.stop()
        finally:
            await producer.stop()

    async def publish_faststream(self, count: int) -> Figure:
        topic = await self.created(self.queue())
        async with self.faststream() as broker:

            async def send(item: Item) -> None:
                await broker.publish(item, topic)

            await send(Item(number=0, text=""))
            return await _gathered(send, items(count))

    async def publish_faststream_batch(self, count: int, size: int = 1000) -> Figure:
        topic = await self.created(self.queue())
        messages = items(count)
        async with self.faststream() as broker:

            async def send(part: int) -> None:
                await broker.publish_batch(
                    *messages[part : part + size], topic=topic, partition=part // size % PARTITIONS
                )

            await broker.publish(messages[0], topic)
            watch = Watch(count)
            await _gathered(send, list(range(0, count, size)), at_once=PARTITIONS)
            return watch.stop()

    @contextlib.asynccontextmanager
    async def faststream(self) -> AsyncIterator[Any]:
        from faststream.kafka import KafkaBroker

        broker = KafkaBroker(self.servers, logger=None, **_PRODUCER)
        await broker.connect()
        try:
            yield broker
        finally:
            await broker.stop()

    # -- consuming ----------------------------------------------------------------------------------------------

    async def consume(self, count: int, **options: Any) -> Figure:
        """Per-message handlers."""
        queue = self.queue()
        await self.filled(queue, items(count))
        done, bus = Done(count), Bus(self.url)

        async def handle(item: Item) -> None:
            done.note(item.number)

        bus.on(queue, **{"concurrency": 16, "prefetch": 2000, **options})(handle)
        async with bus:
            await bus.start()
            return await done.figure()

    async def consume_batches(self, count: int, *, size: int = 500) -> Figure:
        queue = self.queue()
        await self.filled(queue, items(count))
        done, bus = Done(count), Bus(self.url)

        async def handle(batch: list[Item]) -> None:
            for item in batch:
                done.note(item.number)

        bus.on(queue, batch=size, concurrency=1, prefetch=2 * size)(handle)
        async with bus:
            await bus.start()
            return await done.figure()

    async def consume_raw(self, count: int, *, size: int = 500, decoded: bool = True) -> Figure:
        """A bare `getmany` loop that decodes, handles and commits."""
        queue = self.queue()
        await self.filled(queue, items(count))
        done = Done(count)
        consumer = AIOKafkaConsumer(queue.name, bootstrap_servers=self.servers, **_CONSUMER)
        await consumer.start()
        try:
            left = count
            while left:
                batch = await consumer.getmany(timeout_ms=1000, max_records=size)
                payloads = [decode(record.value) for records in batch.values() for record in records]
                for item in payloads:
                    done.note(item.number)
                left -= len(payloads)
                await consumer.commit()
            return await done.figure()
        finally:
            await consumer.stop()

    async def consume_faststream(self, count: int, *, workers: int = 1, batch: bool = False) -> Figure:
        from faststream import AckPolicy
        from faststream.kafka import KafkaBroker

        queue = self.queue()
        await self.filled(queue, items(count))
        done = Done(count)
        broker = KafkaBroker(self.servers, logger=None)
        options: dict[str, Any] = {"group_id": queue.name, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 100}
        if batch:
            options |= {"batch": True, "max_records": 500}

            async def handle_batch(batch: list[Item]) -> None:
                for item in batch:
                    done.note(item.number)

            broker.subscriber(queue.name, ack_policy=AckPolicy.NACK_ON_ERROR, **options)(handle_batch)
        else:
            if workers > 1:
                options["max_workers"] = workers

            async def handle(item: Item) -> None:
                done.note(item.number)

            broker.subscriber(queue.name, ack_policy=AckPolicy.NACK_ON_ERROR, **options)(handle)
        await broker.start()
        try:
            return await done.figure()
        finally:
            await broker.stop()

    # -- handlers that wait -------------------------------------------------------------------------------------

    async def slow(self, count: int, concurrency: int) -> Figure:
        """Handlers of 10 ms on one partition."""
        queue = self.queue(partitions=1)
        await self.filled(queue, items(count))
        done, bus = Done(count), Bus(self.url)

        async def handle(item: Item) -> None:
            await asyncio.sleep(0.01)
            done.note(item.number)

        bus.on(queue, concurrency=concurrency)(handle)
        async with bus:
            await bus.start()
            return await done.figure()

    async def keyed(self, count: int, keys: int) -> Figure:
        """Return the seconds for keyed messages of 0 to 5 ms on one partition, 100 in flight; checks their order."""
        queue = self.queue(partitions=1, keyed=True)
        dice = random.Random(count)
        messages = [Item(number=n, text=f"key-{n % keys}") for n in range(count)]
        waits = [dice.random() * 0.005 for _ in range(count)]
        await self.filled(queue, messages)
        done, bus = Done(count), Bus(self.url)
        last: dict[str, int] = {}

        async def handle(item: Item) -> None:
            await asyncio.sleep(waits[item.number])
            if last.get(item.text, -1) >= item.number:
                sys.exit(f"{item.text}: {item.number} came after {last[item.text]}")
            last[item.text] = item.number
            done.note(item.number)

        bus.on(queue, concurrency=100)(handle)
        async with bus:
            await bus.start()
            return await done.figure()

    def cases(self, scale: float) -> list[Case]:
        def n(count: int) -> int:
            return max(1000, int(count * scale) // 1000 * 1000)

        return [
            Case("publish", "msgbus send_many", lambda: self.publish_many(n(60_000))),
            Case("publish", "msgbus send, 1,000 at once", lambda: self.publish_each(n(40_000))),
            Case("publish", "aiokafka send", lambda: self.publish_raw(n(40_000))),
            Case("publish", "FastStream publish, 1,000 at once", lambda: self.publish_faststream(n(20_000))),
            Case("publish", "FastStream publish_batch(1,000)", lambda: self.publish_faststream_batch(n(60_000))),
            Case("consume", "msgbus, one by one", lambda: self.consume(n(60_000))),
            Case("consume", "FastStream, acked", lambda: self.consume_faststream(n(2_000))),
            Case("consume", "FastStream, acked, 6 workers", lambda: self.consume_faststream(n(2_000), workers=6)),
            Case("batch", "msgbus, batches of 500", lambda: self.consume_batches(n(60_000))),
            Case("batch", "aiokafka getmany(500), decoded", lambda: self.consume_raw(n(60_000))),
            Case("batch", "FastStream, batches of 500", lambda: self.consume_faststream(n(60_000), batch=True)),
            Case("latency", "64 handlers of 10 ms at once", lambda: self.slow(5_000, 64)),
            Case("latency", "1 handler of 10 ms", lambda: self.slow(100, 1)),
            *(
                Case("keys", f"10,000 x 0-5 ms, {keys:,} keys, 100 at once", partial(self.keyed, 10_000, keys))
                for keys in (20, 100, 1000, 10_000)
            ),
        ]


_PRODUCER: dict[str, Any] = {"acks": "all", "enable_idempotence": True, "linger_ms": 5, "max_batch_size": 512 * 1024}
_CONSUMER: dict[str, Any] = {
    "group_id": GROUP,
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    "fetch_max_wait_ms": 100,
}
_HEADERS = [("content-type", b"application/json"), ("correlation_id", b"x" * 36)]
"""As many as FastStream writes; msgbus writes six, with the message's id and time."""


async def _nothing(_: Item) -> None: ...


async def _gathered(send: Callable[[Any], Awaitable[None]], arguments: list[Any], *, at_once: int = 1000) -> Figure:
    """Return what it takes with *at_once* of them under way."""
    left = deque(arguments)

    async def work() -> None:
        while left:
            await send(left.popleft())

    watch = Watch(len(arguments))
    await asyncio.gather(*(work() for _ in range(at_once)))
    return watch.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="how many of the messages")
    parser.add_argument("--only", default="")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--url", help="a broker that runs already; its own process otherwise")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    run: Callable[[Any], Any] = asyncio.run
    if options.uvloop:
        import uvloop

        run = uvloop.run
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(start("kafka")).url
        cases = Bench(url).cases(options.scale)
        cases = [c for c in cases if c.group in (options.only.split(",") if options.only else [c.group])]
        cases = [c for c in cases if options.case in c.name]
        figures: dict[str, list[Figure]] = {case.name: [] for case in cases}
        for _ in range(options.rounds):
            for case in cases:
                figures[case.name].append(run(_await(case.run)))
    print(f"Python {platform.python_version()}, {platform.machine()}, {options.rounds} rounds, medians")
    for case in cases:
        found = figures[case.name]
        rate, spread, took, cpu = (
            statistics.median(f.rate for f in found),
            (max(f.rate for f in found) - min(f.rate for f in found)) / 2,
            statistics.median(f.seconds for f in found),
            statistics.median(f.cpu for f in found),
        )
        print(f"{case.group:8} {case.name:44} {rate:>9,.0f} +-{spread:<7,.0f}/s {took:>7.2f} s {cpu:>7.1f} us CPU each")
    if options.json:
        text = json.dumps({name: [vars(f) for f in found] for name, found in figures.items()}, indent=2)
        options.json.write_text(text + "\n")


async def _await(call: Callable[[], Awaitable[Figure]]) -> Figure:
    return await call()


if __name__ == "__main__":
    main()
