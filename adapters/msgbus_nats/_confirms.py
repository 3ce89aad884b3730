"""Publishing with confirmation: many messages in flight, each matched with the server's answer to it.

Every message carries a reply subject of its own under one inbox. JetStream answers there with an acknowledgement or
an error; the server itself answers when nothing takes the subject. Messages over core NATS are never acknowledged:
they count as confirmed once the server has read them and has not said that nobody takes them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from msgbus.errors import (
    MessageTooLarge,
    NoResponders,
    PublishError,
    PublishRejected,
    Unroutable,
)
from msgbus_nats._client import NatsClient, frame
from msgbus_nats._errors import Busy, Unconfirmed, refused
from msgbus_nats._link import Link

__all__ = ["Confirms", "Job", "Mode"]

_WINDOW = 32 * 1024 * 1024
"""Bytes that may be unconfirmed at once. The server refuses more than 128 MiB per stream from all clients."""
_FORBIDDEN = re.compile(r'permissions violation for publish to "(.+?)"')
_MOST = 2_000
"""Messages that may be unconfirmed at once. Fewer idle while confirmations travel; more make a slow server slower,
until it confirms after the timeout what was sent again already."""
_CHUNK = 64 * 1024
"""Bytes that are written at once. Smaller costs system calls, larger lets the server wait for us."""
_SILENCE = 0.01
"""Seconds before the server is asked whether it has read what nobody confirms: nobody waits for that but the window
of unconfirmed messages, and many share a question. A request without responders is refused at once nevertheless."""
_UNSAFE = re.compile(r"[\s\x00]")
"""What would end a subject, and begin another command, on the wire."""
_REMEMBERED = 10_000
"""How many requests are remembered for answers from responders that know nothing of msgbus's headers."""


class Mode(Enum):
    """Who confirms a message."""

    STORED = "stored"
    """JetStream, when it has stored it."""
    HEARD = "heard"
    """Nobody; but the server says at once if there is nobody to take it."""
    PROCESSED = "processed"
    """Whoever it is for, by any answer."""
    CAST = "cast"
    """Nobody: whoever listens gets it."""


_UNCONFIRMED = frozenset({Mode.HEARD, Mode.CAST})


@dataclass(slots=True, eq=False)
class Job:
    """A message ready for the wire.

    Attributes:
        subject: Where to.
        body: The body.
        headers: The encoded header block.
        mode: Who confirms it.
        reply_to: On requests, the reply address it names, so that plain answers find their way, too.
        id: The message's id.
    """

    subject: str
    body: bytes
    headers: bytes
    mode: Mode
    reply_to: str = ""
    id: str = ""


class _Batch:
    """The jobs of one call, and what became of them."""

    __slots__ = ("done", "first", "jobs", "left", "open", "results", "silence")

    def __init__(self, jobs: Sequence[Job], first: int) -> None:
        self.jobs = jobs
        self.first = first
        self.left = len(jobs)
        self.open = [True] * len(jobs)
        self.results: list[PublishError | None] = [None] * len(jobs)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.silence: asyncio.Future[None] | None = None

    def resolve(self, index: int, error: PublishError | None) -> bool:
        if not self.open[index]:
            return False
        self.open[index] = False
        self.results[index] = error
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)
        return True


class Confirms:
    """Publishes batches.

    Args:
        link: The connection.
        timeout: Seconds to wait for confirmations.
        monotonic: The clock.
        max_body: Returns the limit that `MessageTooLarge` names.
        on_answer: Takes answers of plain NATS responders: the reply address, the request's id, the message.
    """

    def __init__(
        self,
        link: Link,
        timeout: float,
        monotonic: Callable[[], float],
        max_body: Callable[[], int],
        on_answer: Callable[[str, str, Msg], None],
    ) -> None:
        self._link = link
        self._monotonic = monotonic
        self._timeout = timeout
        self._max_body = max_body
        self._on_answer = on_answer
        self._prefix = f"{link.inbox}.a."
        self._next = 0
        self._batches: dict[_Batch, float] = {}
        self._pending: dict[int, tuple[_Batch, int]] = {}
        self._asked: dict[str, int] = {}
        self._requests: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._bytes = 0
        self._room = asyncio.Event()
        self._storing = asyncio.Lock()
        self._casting = asyncio.Lock()
        link.on_complaint = self._complained

    async def attach(self, client: Client) -> None:
        """Listen for confirmations on a new connection."""
        del client
        await self._link.subscribe(f"{self._prefix}*", self._answered)

    def detach(self) -> None:
        """Give up on all that is unconfirmed: the core publishes it again with the same ids."""
        for number in list(self._pending):
            self._resolve(number, Unconfirmed("the connection was lost before the server confirmed the message"))

    def tick(self) -> None:
        """Give up on what is overdue."""
        text = f"the server did not confirm the message within {self._timeout:g} s"
        for batch in [batch for batch, deadline in self._batches.items() if deadline < self._link.ticked]:
            for index in range(len(batch.jobs)):
                self._settle(batch, index, Unconfirmed(text))

    async def publish(self, jobs: Sequence[Job]) -> list[PublishError | None]:
        """Publish *jobs*; return what became of each.

        Raises:
            BrokerUnavailable: None was sent.
        """
        client = self._link.use()
        batch = _Batch(jobs, self._next)
        self._next += len(jobs)
        try:
            stored = any(job.mode is Mode.STORED for job in jobs)
            # One call's messages are in the stream before the next one's. Requests do not wait for room with them.
            async with self._storing if stored else self._casting:
                await self._send(client, batch, wait=stored)
            self._batches[batch] = self._monotonic() + self._timeout
            await batch.done
        finally:
            self._batches.pop(batch, None)
            if batch.silence is not None:
                batch.silence.cancel()
            if batch.left:  # cancelled: late answers find nothing
                for index in range(len(jobs)):
                    self._settle(batch, index, None)
        return batch.results

    async def _send(self, client: NatsClient, batch: _Batch, *, wait: bool) -> None:
        jobs = batch.jobs
        sound = [index for index in range(len(jobs)) if not self._refuse(batch, index)]
        for chunk in _chunks(jobs, sound):
            size = sum(len(jobs[index].body) for index in chunk)
            while wait and self._pending and (self._bytes + size > _WINDOW or len(self._pending) >= _MOST):
                self._room.clear()
                await self._room.wait()
            self._write(client, batch, chunk)
            if chunk[-1] != sound[-1]:
                await asyncio.sleep(0)  # the server begins while we go on
        if batch.left and any(job.mode in _UNCONFIRMED for job in jobs):
            batch.silence = self._link.reading(patience=_SILENCE)
            batch.silence.add_done_callback(lambda read: self._read(read, batch))

    def _read(self, read: asyncio.Future[None], batch: _Batch) -> None:
        """Confirm what the server has read without saying that nobody takes it."""
        if read.cancelled() or read.exception():
            return  # all is confirmed, or `detach` has settled it
        for index, job in enumerate(batch.jobs):
            if job.mode in _UNCONFIRMED:
                self._settle(batch, index, None)

    def _refuse(self, batch: _Batch, index: int) -> bool:
        """Tell whether a message cannot be sent, having said so."""
        job, limit = batch.jobs[index], self._max_body()
        size = len(job.body)
        error: PublishError
        if size > limit:
            error = MessageTooLarge(size, limit)
        elif size + len(job.headers) > self._link.max_payload:  # the server would close the connection
            error = MessageTooLarge(size + len(job.headers), self._link.max_payload)
        elif not _is_subject(job.subject):
            error = PublishRejected(f"{job.subject!r} is no subject")
        else:
            return False
        self._settle(batch, index, error)
        return True

    def _write(self, client: NatsClient, batch: _Batch, chunk: list[int]) -> None:
        frames = [self._frame(batch, index) for index in chunk]
        try:
            if self._link.client is not client:
                raise errors.ConnectionClosedError
            client.write(frames, now=True)
        except errors.Error as exc:
            error = Busy("the connection was lost before the message was sent")
            error.__cause__ = exc
            for index in chunk:
                self._settle(batch, index, error)

    def _frame(self, batch: _Batch, index: int) -> bytes:
        job, number = batch.jobs[index], batch.first + index
        self._pending[number] = (batch, index)
        self._bytes += len(job.body)
        if job.mode is Mode.CAST:
            return frame(job.subject, job.body, "", job.headers)
        if job.reply_to:
            self._asked[job.id] = number
            self._requests[number] = (job.reply_to, job.id)
            if len(self._requests) > _REMEMBERED:
                self._requests.popitem(last=False)
        return frame(job.subject, job.body, f"{self._prefix}{number}", job.headers)

    def answered(self, request_id: str) -> None:
        """Confirm a request: who answers it has got it."""
        number = self._asked.get(request_id)
        if number is not None:
            self._resolve(number, None)

    def _settle(self, batch: _Batch, index: int, error: PublishError | None) -> None:
        if batch.resolve(index, error) and self._pending.pop(batch.first + index, None) is not None:
            job = batch.jobs[index]
            self._bytes -= len(job.body)
            if job.reply_to:
                self._asked.pop(job.id, None)
            self._room.set()

    def _resolve(self, number: int, error: PublishError | None) -> None:
        batch, index = self._pending[number]
        self._settle(batch, index, error)

    def _answered(self, message: Msg) -> None:
        number = int(message.subject[len(self._prefix) :])
        data = message.data
        if data.startswith(b"{") and b'"stream"' in data and b'"error"' not in data:
            if number in self._pending:
                self._resolve(number, None)
            return
        request = self._requests.pop(number, None)
        nobody = not data and message.headers is not None and message.headers.get("Status") == "503"
        if request is not None and not nobody:
            self._on_answer(*request, message)
        if number in self._pending:
            self._resolve(number, self._verdict(number, data, nobody=nobody))

    def _complained(self, text: str) -> None:
        """Refuse what the server drops for want of permission: it tells the connection, not the message."""
        if match := _FORBIDDEN.search(text):
            for number, (batch, index) in list(self._pending.items()):
                if batch.jobs[index].subject.lower() == match[1]:
                    self._resolve(number, PublishRejected(f"no permission to publish to {batch.jobs[index].subject!r}"))

    def _verdict(self, number: int, data: bytes, *, nobody: bool) -> PublishError | None:
        batch, index = self._pending[number]
        job = batch.jobs[index]
        if job.mode is Mode.HEARD:
            return NoResponders(f"nobody listens on {job.subject!r}") if nobody else None
        if job.mode is Mode.PROCESSED and not nobody:
            return None
        if nobody:
            return Unroutable(f"no stream takes the subject {job.subject!r}")
        try:
            error = json.loads(data)["error"]
        except (ValueError, KeyError, TypeError):
            return Unconfirmed(f"something that is not JetStream answered on {job.subject!r}")
        return refused(error, job.subject, len(job.body), self._max_body())


def _chunks(jobs: Sequence[Job], indices: Sequence[int]) -> Iterator[list[int]]:
    """Yield *indices* in portions that are written at once."""
    chunk: list[int] = []
    size = 0
    for index in indices:
        chunk.append(index)
        size += len(jobs[index].body)
        if size > _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@lru_cache(maxsize=4096)
def _is_subject(text: str) -> bool:
    """Tell whether *text* can be published to; reply addresses come from strangers."""
    return bool(text) and not _UNSAFE.search(text)
