"""`make bench-rabbitmq`: msgbus beside FastStream, kombu and py-amqp on one RabbitMQ, interleaved in one run.

All give the same guarantee: a publish ends when the broker has confirmed it, a message is acked after its handler.
Peers get their best settings for that: FastStream 500 publishes in flight, confirms, ``NACK_ON_ERROR``, neither log
lines nor dependency injection; py-amqp, which is one thread and no framework, a window of 500 unconfirmed messages and
writes its acks one by one. Each consumes what it published; a figure is only given if every message came exactly once.

Usage: python tests/bench/rabbitmq.py [--queue classic] [--uvloop] [--count N] [--rounds N] [--url URL] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import platform
import secrets
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import amqp
import kombu

from msgbus import Bus, Queue, RequestReply
from scripts.brokers import start

try:
    import faststream.rabbit as fs
    import uvloop
    from faststream import AckPolicy
except ModuleNotFoundError as exc:
    sys.exit(f"{exc}: install the peers with `pip install --group bench`")

BODY_BYTES = 1024
IN_FLIGHT = 500
PREFETCH = 500
_NUMBER = 8


def bodies(count: int) -> Iterator[bytes]:
    """Yield numbered bodies of 1 KiB."""
    rest = b"x" * (BODY_BYTES - _NUMBER)
    for number in range(count):
        yield number.to_bytes(_NUMBER, "big") + rest


class Tally:
    """Counts what arrives; done when all of *count* different messages have."""

    def __init__(self, count: int) -> None:
        self._missing = set(range(count))
        self._calls = 0
        self.done = asyncio.Event()

    def add(self, body: bytes) -> None:
        self._calls += 1
        self._missing.discard(int.from_bytes(body[:_NUMBER], "big"))
        if not self._missing:
            self.done.set()

    @property
    def is_done(self) -> bool:
        return not self._missing

    def check(self, count: int) -> None:
        if self._missing or self._calls != count:
            sys.exit(f"{count} messages, {self._calls} handler calls, {len(self._missing)} missing: no figure")


class Contestant(ABC):
    """One library on one queue of its own."""

    name: str
    request_count = 0
    """Requests in one round; 0 where the library has no requests."""

    def __init__(self, url: str, queue: str, kind: str) -> None:
        self.url = url
        self.queue = queue
        self.kind = kind

    @abstractmethod
    async def publish(self, count: int) -> float:
        """Publish *count* messages and return the seconds until all are confirmed."""

    @abstractmethod
    async def consume(self, count: int) -> float:
        """Handle and ack *count* waiting messages and return the seconds until the last was handled."""

    async def request(self, count: int) -> float:
        """Make *count* requests, `IN_FLIGHT` at once, and return the seconds until all are answered."""
        raise NotImplementedError


async def in_flight(count: int, call: Callable[[int], Coroutine[Any, Any, Any]]) -> float:
    """Call for each number below *count*, `IN_FLIGHT` at once; return the seconds."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - began


class Msgbus(Contestant):
    """``send_many``, as a program that has many messages to send does."""

    name = "msgbus"
    request_count = 20_000

    async def publish(self, count: int) -> float:
        async with Bus(self.url) as bus:
            channel = await self._empty(bus)
            began = time.perf_counter()
            await bus.send_many(channel, bodies(count))
            return time.perf_counter() - began

    @property
    def _queue(self) -> Queue[bytes]:
        return Queue(self.queue, bytes, native={"queue_type": self.kind})

    async def _empty(self, bus: Bus) -> Queue[bytes]:
        """Return the queue, declared, empty and connected to."""
        await bus.send(self._queue, b"")
        connection = await bus.raw()
        await asyncio.to_thread(connection.channel().queue_purge, self.queue)
        return self._queue

    async def consume(self, count: int) -> float:
        bus, tally = Bus(self.url, prefetch=PREFETCH), Tally(count)

        @bus.on(self._queue, concurrency=16)
        async def handle(body: bytes) -> None:
            tally.add(body)

        async with bus:
            began = time.perf_counter()
            await bus.start()
            await tally.done.wait()
            took = time.perf_counter() - began
        tally.check(count)
        return took

    async def request(self, count: int) -> float:
        echo = RequestReply(f"{self.queue}-echo", bytes, bytes)
        server, client = Bus(self.url, prefetch=PREFETCH), Bus(self.url)

        @server.on(echo, concurrency=64)
        async def answer(body: bytes) -> bytes:
            return body

        async with server, client:
            await server.start()
            await client.request(echo, b"warm", timeout=10)
            sent = list(bodies(count))

            async def ask(number: int) -> None:
                if await client.request(echo, sent[number], timeout=60) != sent[number]:
                    sys.exit("msgbus: a request got another one's answer")

            return await in_flight(count, ask)


class MsgbusSingly(Msgbus):
    """``send`` from many tasks at once, as the handlers of a web server do."""

    name = "msgbus, send by send"
    request_count = 0

    async def publish(self, count: int) -> float:
        async with Bus(self.url) as bus:
            channel = await self._empty(bus)
            todo = bodies(count)
            return await in_flight(count, lambda _: bus.send(channel, next(todo)))


class FastStream(Contestant):
    name = "FastStream"
    request_count = 500

    @contextlib.asynccontextmanager
    async def _broker(self) -> AsyncIterator[fs.RabbitBroker]:
        channel = fs.Channel(prefetch_count=PREFETCH)
        broker = fs.RabbitBroker(self.url, default_channel=channel, logger=None, apply_types=False)
        await broker.connect()
        try:
            yield broker
        finally:
            await broker.stop()

    @property
    def _queue(self) -> fs.RabbitQueue:
        kind = fs.QueueType(self.kind)
        return fs.RabbitQueue(self.queue, queue_type=kind, durable=True)

    async def publish(self, count: int) -> float:
        async with self._broker() as broker:
            queue = self._queue
            await (await broker.declare_queue(queue)).purge()
            todo = bodies(count)
            return await in_flight(count, lambda _: broker.publish(next(todo), queue, persist=True))

    async def consume(self, count: int) -> float:
        tally = Tally(count)
        async with self._broker() as broker:

            async def handle(body: bytes) -> None:
                tally.add(body)

            broker.subscriber(self._queue, ack_policy=AckPolicy.NACK_ON_ERROR)(handle)
            began = time.perf_counter()
            await broker.start()
            await tally.done.wait()
            took = time.perf_counter() - began
        tally.check(count)
        return took

    async def request(self, count: int) -> float:
        async with self._broker() as broker:
            name = f"{self.queue}-echo"

            async def answer(body: bytes) -> bytes:
                return body

            broker.subscriber(name)(answer)
            await broker.start()
            await broker.request(b"warm", name, timeout=10)
            sent = list(bodies(count))

            async def ask(number: int) -> None:
                reply = await broker.request(sent[number], name, timeout=60)
                if reply.body != sent[number]:
                    sys.exit("FastStream: a request got another one's answer")

            return await in_flight(count, ask)


class PyAMQP(Contestant):
    """The client itself, in the loop of a script: what is left to a framework."""

    name = "py-amqp, no framework"

    @contextlib.contextmanager
    def _channel(self) -> Iterator[amqp.Channel]:
        parts = urlsplit(self.url)
        connection = amqp.Connection(f"{parts.hostname}:{parts.port}", parts.username, parts.password)
        connection.connect()
        try:
            yield connection.channel()
        finally:
            connection.close()

    async def publish(self, count: int) -> float:
        with self._channel() as channel:
            arguments = {"x-queue-type": self.kind}
            channel.queue_declare(self.queue, durable=True, auto_delete=False, arguments=arguments)
            channel.queue_purge(self.queue)
            confirmed = 0

            def on_ack(tag: int, multiple: bool) -> None:
                nonlocal confirmed
                confirmed = tag if multiple else confirmed + 1

            channel.confirm_select()
            channel.events["basic_ack"].add(on_ack)
            began = time.perf_counter()
            for sent, body in enumerate(bodies(count)):
                while sent - confirmed >= IN_FLIGHT:
                    channel.connection.drain_events(timeout=10)
                channel.basic_publish(amqp.Message(body, delivery_mode=2), routing_key=self.queue)
            while confirmed < count:
                channel.connection.drain_events(timeout=10)
            return time.perf_counter() - began

    async def consume(self, count: int) -> float:
        tally = Tally(count)
        with self._channel() as channel:

            def handle(message: amqp.Message) -> None:
                body = message.body
                tally.add(body.encode("latin-1") if isinstance(body, str) else body)
                channel.basic_ack(message.delivery_tag)

            began = time.perf_counter()
            channel.basic_qos(0, PREFETCH, False)
            channel.basic_consume(self.queue, callback=handle)
            while not tally.is_done:
                channel.connection.drain_events(timeout=10)
            took = time.perf_counter() - began
        tally.check(count)
        return took


class Kombu(Contestant):
    """kombu as its guide shows it: each publish waits for its own confirm."""

    name = "kombu"

    def _connection(self) -> Any:
        return kombu.Connection(self.url, transport_options={"confirm_publish": True})

    def _queue(self, connection: Any) -> Any:
        arguments = {"x-queue-type": self.kind}
        return kombu.Queue(self.queue, durable=True, queue_arguments=arguments)(connection.channel())

    async def publish(self, count: int) -> float:
        with self._connection() as connection:
            queue = self._queue(connection)
            queue.declare()
            queue.purge()
            producer = connection.Producer()
            options = {"routing_key": self.queue, "content_type": "application/octet-stream", "delivery_mode": 2}
            began = time.perf_counter()
            for body in bodies(count):
                producer.publish(body, content_encoding="binary", **options)
            return time.perf_counter() - began

    async def consume(self, count: int) -> float:
        tally = Tally(count)

        def handle(body: bytes, message: Any) -> None:
            tally.add(body)
            message.ack()

        with self._connection() as connection:
            began = time.perf_counter()
            with connection.Consumer([self._queue(connection)], callbacks=[handle], prefetch_count=PREFETCH):
                while not tally.is_done:
                    connection.drain_events(timeout=10)
                took = time.perf_counter() - began
        tally.check(count)
        return took


CONTESTANTS: tuple[type[Contestant], ...] = (Msgbus, MsgbusSingly, FastStream, PyAMQP, Kombu)


_PHASES = ("publish", "consume", "request")


def run_round(contestant: Contestant, count: int, *, fast_loop: bool) -> dict[str, float]:
    """Publish, consume, request; return messages per second, and the CPU's microseconds per message, by phase."""
    figures: dict[str, float] = {}
    for phase in _PHASES:
        number = contestant.request_count if phase == "request" else count
        if not number:
            continue
        gc.collect()
        gc.freeze()  # as servers do after their imports: what all contestants imported is nobody's garbage
        cpu = time.process_time()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if fast_loop else None) as runner:
            figures[phase] = number / runner.run(getattr(contestant, phase)(number))
        figures[f"{phase}_cpu_us"] = (time.process_time() - cpu) / number * 1e6
    return figures


def measure(url: str, kind: str, count: int, rounds: int, *, fast_loop: bool) -> dict[str, dict[str, list[float]]]:
    """Return each contestant's figures, after a round that warms up broker and code."""
    run = secrets.token_hex(3)
    contestants = [make(url, f"bench-{run}-{number}", kind) for number, make in enumerate(CONTESTANTS)]
    results: dict[str, dict[str, list[float]]] = {c.name: {} for c in contestants}
    for number in range(rounds + 1):
        for contestant in contestants:
            figures = run_round(contestant, count if number else count // 10, fast_loop=fast_loop)
            for name, value in figures.items() if number else ():
                results[contestant.name].setdefault(name, []).append(value)
    return results


def show(results: dict[str, dict[str, list[float]]]) -> None:
    """Print medians, their spread, and how they compare with FastStream's."""
    print(f"{'':24} {'publish/s':>18} {'consume/s':>18} {'requests/s':>18}   CPU us per message")
    best = {phase: statistics.median(values) for phase, values in results[FastStream.name].items()}
    for name, figures in results.items():
        cells, cpu = [], []
        for phase in _PHASES:
            if not (values := figures.get(phase)):
                cells.append(f"{'':18}")
                continue
            middle = statistics.median(values)
            spread = (max(values) - min(values)) / 2 / middle
            cells.append(f"{middle:>7,.0f} +-{spread:>3.0%} {middle / best[phase]:>4.1f}x")
            cpu.append(f"{statistics.median(figures[f'{phase}_cpu_us']):.0f}")
        print(f"{name:24} {' '.join(cells)}   {' / '.join(cpu)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a RabbitMQ that runs already")
    parser.add_argument("--count", type=int, default=20_000, help="messages per round and contestant")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queue", choices=["quorum", "classic"], default="quorum")
    parser.add_argument("--uvloop", action="store_true", help="for all that run on an event loop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(start("rabbitmq")).url
        results = measure(url, options.queue, options.count, options.rounds, fast_loop=options.uvloop)
    loop = "uvloop" if options.uvloop else "asyncio"
    print(f"Python {platform.python_version()}, {loop}, {options.queue} queues, {BODY_BYTES} B bodies, ", end="")
    print(f"{options.count:,} messages, {options.rounds} rounds; medians, and times FastStream's")
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
