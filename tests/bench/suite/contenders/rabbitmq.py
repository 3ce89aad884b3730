"""The raw clients of RabbitMQ: what is left to a framework."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

import amqp
import kombu

from tests.bench.suite.contender import Contender, Kind, Place, Publisher
from tests.bench.suite.load import Handler

__all__ = ["Kombu", "PyAMQP"]

IN_FLIGHT = 500
PREFETCH = 250
_ARGUMENTS = {"x-queue-type": "quorum"}


class _Blocking(Contender):
    """A client without an event loop: its consumer has a thread, its publisher blocks."""

    kind = Kind.RAW
    can = frozenset({"processes"})

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        stop, ready = threading.Event(), threading.Event()
        thread = asyncio.create_task(asyncio.to_thread(self._consume, places[0].name, handler, stop, ready))
        await asyncio.to_thread(ready.wait, 30)
        try:
            yield
        finally:
            stop.set()
            ready.set()
            await thread

    def _consume(self, queue: str, handler: Handler, stop: threading.Event, ready: threading.Event) -> None:
        raise NotImplementedError


def _drain(drain_events: Callable[..., Any], stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            drain_events(timeout=0.1)


class _Confirmed(Publisher):
    """Keeps `IN_FLIGHT` messages unconfirmed."""

    def __init__(self, channel: amqp.Channel, queue: str) -> None:
        self._channel, self._queue = channel, queue
        self._sent = self._confirmed = 0
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._confirmed = tag if multiple else self._confirmed + 1

    async def one(self, body: bytes) -> None:
        self._publish(body)
        self._wait(0)

    async def many(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            self._wait(IN_FLIGHT - 1)
            self._publish(body)
        self._wait(0)

    def _publish(self, body: bytes) -> None:
        self._channel.basic_publish(amqp.Message(body, delivery_mode=2), routing_key=self._queue)
        self._sent += 1

    def _wait(self, unconfirmed: int) -> None:
        while self._sent - self._confirmed > unconfirmed:
            self._channel.connection.drain_events(timeout=10)


class PyAMQP(_Blocking):
    """The client at its best: confirms in a window, acks one by one."""

    name = "py-amqp"
    settings = "500 unconfirmed, prefetch 250, acks message by message; quorum queue"
    modules: ClassVar[tuple[str, ...]] = ("amqp",)
    distributions: ClassVar[tuple[str, ...]] = ("amqp",)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[amqp.Channel]:
        parts = urlsplit(self.url)
        connection = amqp.Connection(f"{parts.hostname}:{parts.port}", parts.username, parts.password)
        connection.connect()
        try:
            yield connection.channel()
        finally:
            connection.close()

    async def create(self, *places: Place) -> None:
        with self._channel() as channel:
            for place in places:
                channel.queue_declare(place.name, durable=True, auto_delete=False, arguments=_ARGUMENTS)

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        with self._channel() as channel:
            yield _Confirmed(channel, place.name)

    def _consume(self, queue: str, handler: Handler, stop: threading.Event, ready: threading.Event) -> None:
        with self._channel() as channel:

            def handle(message: amqp.Message) -> None:
                handler.blocking(message.body)
                channel.basic_ack(message.delivery_tag)

            channel.basic_qos(0, PREFETCH, False)
            channel.basic_consume(queue, callback=handle)
            ready.set()
            _drain(channel.connection.drain_events, stop)


class _KombuPublisher(Publisher):
    def __init__(self, producer: Any, queue: str) -> None:
        self._producer = producer
        self._options = {"routing_key": queue, "content_type": "application/octet-stream", "delivery_mode": 2}

    async def one(self, body: bytes) -> None:
        self._producer.publish(body, content_encoding="binary", **self._options)

    async def many(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            await self.one(body)


class Kombu(_Blocking):
    """As kombu's guide shows it."""

    name = "kombu"
    full = False
    settings = "confirm_publish, each publish waits for its confirm; its own loop with prefetch 250; quorum queue"
    modules: ClassVar[tuple[str, ...]] = ("kombu",)
    distributions: ClassVar[tuple[str, ...]] = ("kombu",)

    def _connection(self) -> Any:
        return kombu.Connection(self.url, transport_options={"confirm_publish": True})

    def _queue(self, connection: Any, queue: str) -> Any:
        return kombu.Queue(queue, durable=True, queue_arguments=_ARGUMENTS)(connection.channel())

    async def create(self, *places: Place) -> None:
        with self._connection() as connection:
            for place in places:
                self._queue(connection, place.name).declare()

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        with self._connection() as connection:
            yield _KombuPublisher(connection.Producer(), place.name)

    def _consume(self, queue: str, handler: Handler, stop: threading.Event, ready: threading.Event) -> None:
        def handle(body: bytes, message: Any) -> None:
            handler.blocking(body)
            message.ack()

        with self._connection() as connection:
            queues = [self._queue(connection, queue)]
            with connection.Consumer(queues, callbacks=[handle], prefetch_count=PREFETCH):
                ready.set()
                _drain(connection.drain_events, stop)
