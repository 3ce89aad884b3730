"""boto3 itself on SQS: a call per message, as most programs are written, and batches of ten."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Self

import boto3

from tests.bench.suite.contender import Contender, Kind, Place, Publisher
from tests.bench.suite.load import Handler

__all__ = ["Batches", "OneByOne", "endpoint", "make_queues"]

_BATCH = 10
_BATCH_BYTES = 1 << 18


def endpoint(url: str) -> str:
    """Return the server that a URL of msgbus's names."""
    return url.partition("endpoint=")[2].partition("&")[0]


def client(url: str) -> Any:
    """Return a client for the server."""
    return boto3.client("sqs", endpoint_url=endpoint(url), region_name="us-east-1")


def make_queues(url: str, places: Sequence[Place]) -> None:
    """Make standard queues."""
    sqs = client(url)
    for place in places:
        sqs.create_queue(QueueName=place.name)


class _Publisher(Publisher):
    def __init__(self, sqs: Any, queue_url: str) -> None:
        self._sqs, self._url = sqs, queue_url

    async def one(self, body: bytes) -> None:
        self._sqs.send_message(QueueUrl=self._url, MessageBody=body.decode())

    async def many(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            await self.one(body)


class OneByOne(Contender):
    """`send_message`; `receive_message` as it comes, with `delete_message`."""

    name = "boto3, one by one"
    kind = Kind.RAW
    settings = "send_message; receive_message as it comes (one message), delete_message; long polls of 1 s"
    modules: ClassVar[tuple[str, ...]] = ("boto3",)
    distributions: ClassVar[tuple[str, ...]] = ("boto3",)
    can: ClassVar[frozenset[str]] = frozenset({"processes"})
    full = False
    publisher_class: ClassVar[type[_Publisher]] = _Publisher

    async def __aenter__(self) -> Self:
        self._sqs = client(self.url)
        return self

    async def create(self, *places: Place) -> None:
        make_queues(self.url, places)

    def _queue_url(self, place: Place) -> str:
        found: str = self._sqs.get_queue_url(QueueName=place.name)["QueueUrl"]
        return found

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        yield self.publisher_class(self._sqs, self._queue_url(place))

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        stop = threading.Event()
        thread = asyncio.create_task(asyncio.to_thread(self._consume, self._queue_url(places[0]), handler, stop))
        try:
            yield
        finally:
            stop.set()
            await thread

    def _consume(self, queue_url: str, handler: Handler, stop: threading.Event) -> None:
        sqs = client(self.url)
        while not stop.is_set():
            self._turn(sqs, queue_url, handler)

    def _turn(self, sqs: Any, queue_url: str, handler: Handler) -> None:
        for message in sqs.receive_message(QueueUrl=queue_url, WaitTimeSeconds=1).get("Messages", ()):
            handler.blocking(message["Body"])
            sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])


class _BatchPublisher(_Publisher):
    async def many(self, bodies: Sequence[bytes]) -> None:
        size = max(1, min(_BATCH, _BATCH_BYTES // len(bodies[0])))
        for first in range(0, len(bodies), size):
            part = bodies[first : first + size]
            entries = [{"Id": str(n), "MessageBody": body.decode()} for n, body in enumerate(part)]
            _whole(self._sqs.send_message_batch(QueueUrl=self._url, Entries=entries))


class Batches(OneByOne):
    """Requests of ten messages, one at a time."""

    name = "boto3, batches"
    settings = "send_message_batch, receive_message and delete_message_batch of ten, in one thread; long polls of 1 s"
    can: ClassVar[frozenset[str]] = frozenset({"processes", "batches"})
    full = True
    publisher_class: ClassVar[type[_Publisher]] = _BatchPublisher

    def _turn(self, sqs: Any, queue_url: str, handler: Handler) -> None:
        found = sqs.receive_message(QueueUrl=queue_url, WaitTimeSeconds=1, MaxNumberOfMessages=_BATCH)
        if not (messages := found.get("Messages", ())):
            return
        for message in messages:
            handler.blocking(message["Body"])
        entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(messages)]
        _whole(sqs.delete_message_batch(QueueUrl=queue_url, Entries=entries))


def _whole(answer: Any) -> None:
    """A batch may fail in part, with a good status."""
    if answer.get("Failed"):
        raise RuntimeError(f"{len(answer['Failed'])} of a batch failed: {answer['Failed'][0]}")
