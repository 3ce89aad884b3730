"""`make bench-core`: what msgbus itself costs per message, and what the embedded brokers carry.

Dispatch is measured without a broker: a subscription that hands out ready-made messages and takes their outcomes.
What remains between its time and that of decoding and calling the handler in a bare loop is ours.

Usage: python tests/bench/core.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from msgbus import Bus, Queue
from msgbus._config import load_settings
from msgbus._connections import Connection
from msgbus._consumers import start_receiver
from msgbus._publisher import Publisher
from msgbus._requests import Requester
from msgbus._time import SystemClock
from msgbus.adapter import (
    Adapter,
    AdapterConfig,
    BusURL,
    Capabilities,
    Outcome,
    Received,
    Stats,
    SubscribeOptions,
    Subscription,
    Topology,
)
from msgbus.errors import SettleError

BODY_BYTES = 512


class Item(BaseModel):
    number: int
    text: str


queue = Queue("bench", Item)


def payload(number: int) -> Item:
    return Item(number=number, text="x" * (BODY_BYTES - 30))


@dataclass(frozen=True)
class Result:
    name: str
    unit: str
    median: float
    spread: float
    target: str


class _Feed(Subscription):
    """Hands out prepared messages; takes outcomes and does nothing with them."""

    def __init__(self, messages: list[Received]) -> None:
        self._messages = messages
        self.left = len(messages)
        self.done = asyncio.Event()

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        if not self._messages:
            await asyncio.sleep(wait)
        batch, self._messages = self._messages[:limit], self._messages[limit:]
        return batch

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        self.left -= len(outcomes)
        if not self.left:
            self.done.set()
        return [None] * len(outcomes)

    async def aclose(self) -> None: ...


class _FeedAdapter(Adapter):
    name = "feed"
    capabilities = Capabilities(delivery_count="exact", max_delay=1e9, max_body=1 << 30)

    def __init__(self, feed: _Feed) -> None:
        super().__init__(BusURL("feed"), AdapterConfig())
        self._feed = feed

    async def open(self) -> None: ...
    async def declare(self, topology: Topology) -> None: ...
    async def publish(self, batch: Sequence[object]) -> list[None]:
        return [None] * len(batch)

    async def subscribe(self, source: object, options: SubscribeOptions) -> Subscription:
        return self._feed

    async def stats(self, source: object) -> Stats:
        return Stats()

    async def aclose(self) -> None: ...


def _received(count: int) -> list[Received]:
    _, body = queue.encode(payload(1))
    headers = {"ce-specversion": "1.0", "ce-id": "x", "ce-type": "Item", "ce-source": "b", "ce-time": "2026"}
    return [Received(body, dict(headers), 1, "bench") for _ in range(count)]


async def dispatch_us(count: int) -> float:
    """Return our own microseconds per message: the pipeline's time less that of decoding and handling alone."""

    async def handler(item: Item) -> None:
        pass

    bus = Bus("memory://")
    bus.on(queue)(handler)
    feed = _Feed(_received(count))
    adapter = _FeedAdapter(feed)
    settings, _ = load_settings(url="memory://", prefetch=1000)
    clock = SystemClock()
    publisher = Publisher(adapter, timeout=5, max_body=settings.max_body, clock=clock)
    connection = Connection(adapter, publisher, Requester(adapter, publisher, "r", lease=30, on_crash=lambda _: None))
    start = time.perf_counter()
    receiver = await start_receiver(
        bus.subscriptions[0],
        connection,
        settings,
        clock=clock,
        guard=None,
        middleware=(),
        on_failure=None,
        on_crash=_raise,
    )
    await feed.done.wait()
    whole = time.perf_counter() - start
    await receiver.drain(1)

    messages = _received(count)
    decode = TypeAdapter(Item).validator.validate_json
    start = time.perf_counter()
    for received in messages:
        await handler(decode(received.body))
    bare = time.perf_counter() - start
    return (whole - bare) / count * 1e6


def _raise(error: BaseException) -> None:
    raise error


async def publish_rate(url: str, count: int) -> float:
    async with Bus(url) as bus:
        items = [payload(n) for n in range(count)]
        start = time.perf_counter()
        await bus.send_many(queue, items)
        return count / (time.perf_counter() - start)


def bare_rate(path: str, count: int, size: int = 200) -> float:
    """Return how many bodies a second `sqlite3` itself stores, *size* per transaction: what this machine can do."""
    body = payload(1).model_dump_json().encode()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, headers TEXT, body BLOB)")
        start = time.perf_counter()
        for first in range(0, count, size):
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO message VALUES (?, 'x', ?)", ((n, body) for n in range(first, first + size)))
            db.execute("COMMIT")
        return count / (time.perf_counter() - start)


async def end_to_end_rate(url: str, count: int) -> float:
    """Publish in batches and handle one by one at the same time, both in this process."""

    async def publish(bus: Bus, started: Callable[[], None]) -> None:
        items = [payload(n) for n in range(count)]
        started()
        await bus.send_many(queue, items)

    return await _handle_all(url, count, publish)


async def between_processes_rate(url: str, count: int) -> float:
    """As `end_to_end_rate`, with the producer in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Event(), spawn.Event()
    producer = spawn.Process(target=_produce, args=(url, count, ready, go), daemon=True)

    async def publish(bus: Bus, started: Callable[[], None]) -> None:
        producer.start()
        await asyncio.to_thread(ready.wait)
        started()
        go.set()

    rate = await _handle_all(url, count, publish)
    producer.join()
    return rate


def _produce(url: str, count: int, ready: Any, go: Any) -> None:
    async def main() -> None:
        async with Bus(url) as bus:
            items = [payload(n) for n in range(count)]
            ready.set()
            go.wait()
            await bus.send_many(queue, items)

    asyncio.run(main())


async def _handle_all(url: str, count: int, publish: Callable[[Bus, Callable[[], None]], Awaitable[None]]) -> float:
    """Return the messages handled per second; refuses to give a figure if some were lost or came twice."""
    bus = Bus(url, prefetch=1000)
    calls = [0] * count
    handled = 0
    done = asyncio.Event()
    begin = 0.0

    @bus.on(queue)
    async def handle(item: Item) -> None:
        nonlocal handled
        calls[item.number] += 1
        handled += 1
        if handled == count:
            done.set()

    def started() -> None:
        nonlocal begin
        begin = time.perf_counter()

    async with bus:
        await bus.start()
        await publish(bus, started)
        await asyncio.wait_for(done.wait(), 120)
        elapsed = time.perf_counter() - begin
    if calls != [1] * count:
        sys.exit(f"{url}: {sum(calls)} calls for {count} messages, {calls.count(0)} of them never handled")
    return count / elapsed


def _measure(
    name: str, unit: str, target: str, rounds: int, run: Callable[[Path], Coroutine[Any, Any, float]]
) -> Result:
    """Run a case once to warm up and then *rounds* times, each in a folder that is gone when the next one begins.

    What a round left behind would be written to the disk during the next.
    """
    values = []
    for _ in range(1 + rounds):
        with tempfile.TemporaryDirectory(prefix="msgbus-bench-") as folder:
            values.append(asyncio.run(run(Path(folder))))
    del values[0]
    return Result(name, unit, statistics.median(values), max(values) - min(values), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = options.rounds
    results = []

    async def bare(folder: Path) -> float:
        return bare_rate(f"{folder}/bare.db", 50_000)

    def sqlite(folder: Path) -> str:
        return f"sqlite:///{folder}/bench.db"

    cases: list[tuple[str, str, str, Callable[[Path], Coroutine[Any, Any, float]]]] = [
        ("dispatch", "us/message", "<= 8", lambda _: dispatch_us(50_000)),
        ("memory: publish in batches", "messages/s", "", lambda _: publish_rate("memory://", 50_000)),
        ("memory: end to end", "messages/s", "", lambda _: end_to_end_rate("memory://", 50_000)),
        ("sqlite3 itself: inserts", "messages/s", "", bare),
        ("sqlite: publish in batches", "messages/s", ">= 50,000", lambda f: publish_rate(sqlite(f), 50_000)),
        ("sqlite: end to end", "messages/s", ">= 20,000", lambda f: end_to_end_rate(sqlite(f), 50_000)),
        ("sqlite: between processes", "messages/s", "", lambda f: between_processes_rate(sqlite(f), 50_000)),
    ]
    print(f"Python {platform.python_version()}, {platform.machine()}, {BODY_BYTES} B bodies, {rounds} rounds")
    for name, unit, target, run in cases:
        result = _measure(name, unit, target, rounds, run)
        results.append(result)
        spread = f"+-{result.spread / 2:,.1f}"
        print(f"{name:28} {result.median:>12,.1f} {spread:>12} {unit:12} {target and 'target ' + target}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([vars(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
