"""msgbus beside FastStream and nats-py on one NATS server, interleaved in one run.

All give the same guarantee: a publish ends when JetStream has confirmed it, a message is acked after its handler.
Peers get their best settings for that: FastStream 256 publishes in flight, neither log lines nor dependency
injection, and each of its ways to consume; nats-py its ``publish_async`` and a loop of ``fetch(256)``. Each consumes
what it published; a figure is only given if every message came exactly once.

Usage: python -m tests.bench.nats [--uvloop] [--count N] [--rounds N] [--url URL] [--json FILE] [--only NAME,NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import secrets
import statistics
import sys
import time
from abc import ABC
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
from nats.aio.msg import Msg
from nats.js import api

from msgbus import Bus, Queue, RequestReply
from scripts.brokers import start

try:
    import faststream.nats as fs
    import uvloop
    from faststream import AckPolicy
except ModuleNotFoundError as exc:
    sys.exit(f"{exc}: install the peers with `pip install --group bench`")

BODY_BYTES = 1024
IN_FLIGHT = 256
FETCH = 256
REQUESTS_IN_FLIGHT = 100
_NUMBER = 8


def bodies(count: int) -> Iterator[bytes]:
    """Yield numbered bodies."""
    rest = b"x" * (BODY_BYTES - _NUMBER)
    for number in range(count):
        yield number.to_bytes(_NUMBER, "big") + rest


class Tally:
    """Counts what arrives; done when all of *count* different messages have."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._missing = set(range(count))
        self._calls = 0
        self.done = asyncio.Event()

    def add(self, body: bytes) -> None:
        self._calls += 1
        self._missing.discard(int.from_bytes(body[:_NUMBER], "big"))
        if not self._missing:
            self.done.set()

    def check(self) -> None:
        if self._missing or self._calls != self._count:
            sys.exit(f"{self._count} messages, {self._calls} handler calls, {len(self._missing)} missing: no figure")


async def in_flight(count: int, width: int, call: Callable[[int], Awaitable[Any]]) -> float:
    """Call for each number below *count*, *width* at once; return the seconds."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(width)))
    return time.perf_counter() - began


class Contestant(ABC):
    """One library on one stream of its own. Each phase it takes part in is a method that returns seconds."""

    name: str
    phases: tuple[str, ...] = ("publish", "consume", "request", "latency")

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.channel = name

    @contextlib.asynccontextmanager
    async def _stream(self) -> AsyncIterator[nats.js.JetStreamContext]:
        """A plain client, and an empty stream as a queue has it."""
        client = await nats.connect(self.url)
        jetstream = client.jetstream()
        config = api.StreamConfig(name=self.channel, subjects=[self.channel], retention=api.RetentionPolicy.WORK_QUEUE)
        await jetstream.add_stream(config)
        try:
            yield jetstream
        finally:
            await client.close()

    async def publish(self, count: int) -> float:
        """Publish *count* messages until all are confirmed."""
        raise NotImplementedError

    async def consume(self, count: int) -> float:
        """Handle and ack *count* waiting messages."""
        raise NotImplementedError

    async def request(self, count: int) -> float:
        """Make *count* requests, `REQUESTS_IN_FLIGHT` at once, until all are answered."""
        return await self._requests(count, REQUESTS_IN_FLIGHT)

    async def latency(self, count: int) -> float:
        """Make *count* requests one after the other."""
        return await self._requests(count, 1)

    async def _requests(self, count: int, width: int) -> float:
        raise NotImplementedError

    async def _ask(self, count: int, width: int, request: Callable[[bytes], Awaitable[bytes]]) -> float:
        sent = list(bodies(count))
        await request(b"warm up")

        async def one(number: int) -> None:
            if await request(sent[number]) != sent[number]:
                sys.exit(f"{self.name}: a request got another one's answer")

        return await in_flight(count, width, one)


class Msgbus(Contestant):
    """``send_many``, as a program that has many messages to send does."""

    name = "msgbus"

    @property
    def _queue(self) -> Queue[bytes]:
        return Queue(self.channel, bytes)

    async def publish(self, count: int) -> float:
        async with Bus(self.url) as bus:
            await bus.send(self._queue, b"")
            await (await bus.raw()).jetstream().purge_stream(f"msgbus-queue-{self.channel}")
            return await self._publish(bus, count)

    async def _publish(self, bus: Bus, count: int) -> float:
        began = time.perf_counter()
        await bus.send_many(self._queue, bodies(count))
        return time.perf_counter() - began

    async def consume(self, count: int) -> float:
        bus, tally = Bus(self.url, prefetch=1000), Tally(count)

        @bus.on(self._queue, concurrency=16)
        async def handle(body: bytes) -> None:
            tally.add(body)

        async with bus:
            began = time.perf_counter()
            await bus.start()
            await tally.done.wait()
            took = time.perf_counter() - began
        tally.check()
        return took

    async def _requests(self, count: int, width: int) -> float:
        echo = RequestReply(f"{self.channel}-echo", bytes, bytes)
        server, client = Bus(self.url), Bus(self.url)

        @server.on(echo, concurrency=64)
        async def answer(body: bytes) -> bytes:
            return body

        async with server, client:
            await server.start()
            return await self._ask(count, width, lambda body: client.request(echo, body, timeout=30))


class MsgbusSingly(Msgbus):
    """``send`` from many tasks at once, as the handlers of a web server do."""

    name = "msgbus, send by send"
    phases: tuple[str, ...] = ("publish",)

    async def _publish(self, bus: Bus, count: int) -> float:
        todo = bodies(count)
        return await in_flight(count, IN_FLIGHT, lambda _: bus.send(self._queue, next(todo)))


class FastStream(Contestant):
    """A push consumer, its quickest way to handle message by message."""

    name = "FastStream"

    @contextlib.asynccontextmanager
    async def _broker(self) -> AsyncIterator[fs.NatsBroker]:
        broker = fs.NatsBroker(self.url, logger=None, apply_types=False)
        await broker.connect()
        try:
            yield broker
        finally:
            await broker.stop()

    async def publish(self, count: int) -> float:
        async with self._stream(), self._broker() as broker:
            todo = bodies(count)
            return await in_flight(
                count,
                IN_FLIGHT,
                lambda _: broker.publish(next(todo), self.channel, stream=self.channel, timeout=30),
            )

    def _subscribe(self, broker: fs.NatsBroker, tally: Tally) -> None:
        async def handle(body: bytes) -> None:
            tally.add(body)

        broker.subscriber(
            self.channel,
            stream=fs.JStream(self.channel, declare=False),
            durable="bench",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            config=api.ConsumerConfig(max_ack_pending=-1),
        )(handle)

    async def consume(self, count: int) -> float:
        tally = Tally(count)
        async with self._broker() as broker:
            self._subscribe(broker, tally)
            began = time.perf_counter()
            await broker.start()
            await tally.done.wait()
            took = time.perf_counter() - began
        tally.check()
        return took

    async def _requests(self, count: int, width: int) -> float:
        async with self._broker() as broker:
            subject = f"{self.channel}-echo"

            async def answer(body: bytes) -> bytes:
                return body

            broker.subscriber(subject)(answer)
            await broker.start()

            async def request(body: bytes) -> bytes:
                reply: bytes = (await broker.request(body, subject, timeout=30)).body
                return reply

            return await self._ask(count, width, request)


class FastStreamPull(FastStream):
    """A pull consumer that fetches `FETCH` messages at a time, handled one by one."""

    name = "FastStream, pull"
    phases: tuple[str, ...] = ("publish", "consume")
    batch = False

    def _subscribe(self, broker: fs.NatsBroker, tally: Tally) -> None:
        async def handle(body: Any) -> None:
            for item in body if self.batch else [body]:
                tally.add(item)

        broker.subscriber(
            self.channel,
            stream=fs.JStream(self.channel, declare=False),
            durable="bench",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            pull_sub=fs.PullSub(batch_size=FETCH, batch=self.batch, timeout=1.0),
        )(handle)


class FastStreamBatches(FastStreamPull):
    """Handlers that take whole batches: not the same work, but its highest figure."""

    name = "FastStream, batches"
    batch = True


class NatsPy(Contestant):
    """The client itself: what is left to a framework."""

    name = "nats-py"

    async def publish(self, count: int) -> float:
        async with self._stream() as jetstream:
            began = time.perf_counter()
            futures = [await jetstream.publish_async(self.channel, body, wait_stall=30) for body in bodies(count)]
            await asyncio.gather(*futures)
            return time.perf_counter() - began

    async def consume(self, count: int) -> float:
        tally = Tally(count)

        async def handle(message: Msg) -> None:
            tally.add(message.data)

        client = await nats.connect(self.url)
        began = time.perf_counter()
        config = api.ConsumerConfig(max_ack_pending=-1)
        subscription = await client.jetstream().pull_subscribe(
            self.channel, "bench", stream=self.channel, config=config
        )
        while not tally.done.is_set():
            for message in await subscription.fetch(FETCH, timeout=1):
                await handle(message)
                await message.ack()
        await client.flush()
        took = time.perf_counter() - began
        await client.close()
        tally.check()
        return took

    async def _requests(self, count: int, width: int) -> float:
        subject = f"{self.channel}-echo"
        server, client = await nats.connect(self.url), await nats.connect(self.url)

        async def answer(message: Msg) -> None:
            await message.respond(message.data)

        await server.subscribe(subject, cb=answer)
        await server.flush()

        async def request(body: bytes) -> bytes:
            return (await client.request(subject, body, timeout=30)).data

        try:
            return await self._ask(count, width, request)
        finally:
            await client.close()
            await server.close()


CONTESTANTS: tuple[type[Contestant], ...] = (
    Msgbus,
    MsgbusSingly,
    FastStream,
    FastStreamPull,
    FastStreamBatches,
    NatsPy,
)
_PHASES = {"publish": 1.0, "consume": 1.0, "request": 0.4, "latency": 0.1}
"""Each phase, and what part of the messages it takes."""


def run_round(contestant: Contestant, count: int, *, fast_loop: bool) -> dict[str, float]:
    """Run all phases; return messages per second, and the CPU's microseconds per message, by phase."""
    figures: dict[str, float] = {}
    for phase in contestant.phases:
        number = int(count * _PHASES[phase])
        cpu = time.process_time()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if fast_loop else None) as runner:
            figures[phase] = number / runner.run(getattr(contestant, phase)(number))
        figures[f"{phase}_cpu_us"] = (time.process_time() - cpu) / number * 1e6
    return figures


def measure(url: str, only: set[str], count: int, rounds: int, *, fast_loop: bool) -> dict[str, dict[str, list[float]]]:
    """Return each contestant's figures, after a round that warms up server and code."""
    results: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        for make in CONTESTANTS:
            if only and make.name not in only:
                continue
            contestant = make(url, f"bench-{secrets.token_hex(4)}")
            figures = run_round(contestant, count if number else 2_560, fast_loop=fast_loop)
            for name, value in figures.items() if number else ():
                results.setdefault(make.name, {}).setdefault(name, []).append(value)
    return results


def show(results: dict[str, dict[str, list[float]]]) -> None:
    """Print medians with their spread, and the CPU that each message took."""
    print(f"{'messages/s':22}" + "".join(f"{phase:>18}" for phase in _PHASES) + "   CPU us per message")
    for name, figures in results.items():
        cells, cpu = [], []
        for phase in _PHASES:
            if not (values := figures.get(phase)):
                cells.append(f"{'':18}")
                continue
            middle = statistics.median(values)
            spread = (max(values) - min(values)) / 2 / middle
            cells.append(f"{middle:>11,.0f} +-{spread:>4.0%}")
            cpu.append(f"{statistics.median(figures[f'{phase}_cpu_us']):.0f}")
        print(f"{name:22}{''.join(cells)}   {' / '.join(cpu)}")


def verdicts(results: dict[str, dict[str, list[float]]]) -> Iterator[tuple[str, float, float]]:
    """Yield what is aimed at: its text, what was measured, and the least that is wanted."""
    median = {name: {p: statistics.median(v) for p, v in figures.items()} for name, figures in results.items()}
    ours, raw = median[Msgbus.name], median[NatsPy.name]

    def best(phase: str) -> float:
        return max(f[phase] for name, f in median.items() if name.startswith(FastStream.name) and phase in f)

    yield "publish: times FastStream's best", ours["publish"] / best("publish"), 4.0
    yield "publish: times nats-py's publish_async", ours["publish"] / raw["publish"], 1.0
    yield "consume: times FastStream's best", ours["consume"] / best("consume"), 2.0
    yield "consume: times nats-py's fetch", ours["consume"] / raw["consume"], 1.0
    yield "request: times FastStream's rate", ours["request"] / best("request"), 2.0
    yield "request: nats-py's latency over ours", ours["latency"] / raw["latency"], 1 / 1.3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a NATS server that runs already")
    parser.add_argument("--count", type=int, default=20_480, help="messages per round and contestant")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--only", default="", help="names of contestants")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(start("nats")).url
        results = measure(url, only, options.count, options.rounds, fast_loop=options.uvloop)
    loop = "uvloop" if options.uvloop else "asyncio"
    print(f"Python {platform.python_version()}, {loop}, file storage, {BODY_BYTES} B bodies, ", end="")
    print(f"{options.count:,} messages, medians of {options.rounds} rounds")
    show(results)
    if not only:
        for text, value, least in verdicts(results):
            print(f"{text:40} {value:6.2f}  {'ok' if value >= least else f'MISSED, at least {least:.2f}'}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
