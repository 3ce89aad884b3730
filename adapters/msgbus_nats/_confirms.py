"""Publishing with confirmation: many messages in flight, each matched with the server's answer to it.

Every message carries a reply subject of its own under one inbox. JetStream answers there with an acknowledgement or
an error; the server itself answers when nothing takes the subject. Messages over core NATS are never acknowledged:
they count as confirmed once the server has read them and has not said that nobody takes them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict, deque
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
_CHUNK = 256 * 1024
"""Bytes that are written at once. Smaller wakes the server more often, which takes the processor from us each time."""
_SILENCE = 0.01
"""Seconds before the server is asked whether it has read what nobody confirms: nobody waits for that but the window
of unconfirmed messages, and many share a question. A request without responders is refused at once nevertheless."""
_NOBODY = b"NATS/1.0 503"
"""How the header block begins by which the server says that nobody takes a subject."""
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


_UNCONFIRMED = (Mode.HEARD, Mode.CAST)


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
        done: Called once with what became of it.
        batch: Told so instead.
        number: By which its confirmation names it.
    """

    subject: str
    body: bytes
    headers: bytes
    mode: Mode
    reply_to: str = ""
    id: str = ""
    done: Callable[[PublishError | None], None] | None = None
    batch: _Batch | None = None
    number: int = -1


class _Batch:
    """The jobs of one call, and what became of them."""

    __slots__ = ("done", "errors", "jobs", "left", "silence")

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.left = len(jobs)
        self.errors: dict[Job, PublishError] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.silence: asyncio.Future[None] | None = None
        for job in jobs:
            job.batch = self

    def take(self, job: Job, error: PublishError | None) -> None:
        job.batch = None  # or they would keep each other alive
        if error is not None:
            self.errors[job] = error
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


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
        self._pending: dict[int, Job] = {}
        self._asked: dict[str, Job] = {}
        self._requests: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._posted: list[int] = []
        self._older: deque[tuple[float, list[int]]] = deque()
        self._bytes = 0
        self._room = asyncio.Event()
        self._storing = asyncio.Lock()
        self._casting = asyncio.Lock()
        link.on_complaint = self._complained

    async def attach(self, client: Client) -> None:
        """Listen for confirmations on a new connection."""
        del client
        await self._link.subscribe(f"{self._prefix}*", self._answered, stored=self._stored)

    def detach(self) -> None:
        """Give up on all that is unconfirmed: the core publishes it again with the same ids."""
        for job in list(self._pending.values()):
            self._settle(job, Unconfirmed("the connection was lost before the server confirmed the message"))

    def tick(self) -> None:
        """Give up on what is overdue."""
        text, now = f"the server did not confirm the message within {self._timeout:g} s", self._link.ticked
        for batch in [batch for batch, deadline in self._batches.items() if deadline < now]:
            for job in batch.jobs:
                self._settle(job, Unconfirmed(text))
        while self._older and (self._older[0][0] < now or not any(n in self._pending for n in self._older[0][1])):
            for job in self._unsettled(self._older.popleft()[1]):
                self._settle(job, Unconfirmed(text))

    async def publish(self, jobs: Sequence[Job]) -> list[PublishError | None]:
        """Publish *jobs*; return what became of each.

        Raises:
            BrokerUnavailable: None was sent.
        """
        client = self._link.use()
        batch = _Batch(jobs)
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
                for job in jobs:
                    self._settle(job, None)
        return [batch.errors.get(job) for job in jobs] if batch.errors else [None] * len(jobs)

    def post(self, job: Job) -> bool:
        """Send one message with what else is written in this turn of the event loop; `Job.done` is called later.

        Returns:
            False if that is not possible now, or never: `publish` waits, or says why.
        """
        client = self._link.client
        if client is None or not client.is_connected or self._refused(job, self._max_body()) is not None:
            return False
        if job.mode is Mode.STORED and (self._storing.locked() or self._is_full(len(job.body))):
            return False
        client.write(self._frame(job))
        if not self._posted:
            asyncio.get_running_loop().call_later(_SILENCE, self._ask_for_posted)
        self._posted.append(job.number)
        return True

    def _ask_for_posted(self) -> None:
        """Look after what was posted some moments ago: many messages share a question, and a deadline."""
        numbers, self._posted = self._posted, []
        self._older.append((self._monotonic() + self._timeout, numbers))
        quiet = [job.number for job in self._unsettled(numbers) if job.mode in _UNCONFIRMED]
        if quiet:  # so there is a connection: without one, `detach` has settled all
            self._link.reading().add_done_callback(lambda read: self._read(read, quiet))

    async def _send(self, client: NatsClient, batch: _Batch, *, wait: bool) -> None:
        sound: list[Job] = []
        most = self._max_body()
        for job in batch.jobs:
            error = self._refused(job, most)
            if error is None:
                sound.append(job)
            else:
                batch.take(job, error)
        for chunk in _chunks(sound):
            while wait and self._pending and self._is_full(sum(len(job.body) for job in chunk)):
                self._room.clear()
                await self._room.wait()
            self._write(client, chunk)
            if chunk[-1] is not sound[-1]:
                await asyncio.sleep(0)  # the server begins while we go on
        quiet = [job.number for job in sound if job.mode in _UNCONFIRMED]
        if quiet and batch.left:
            batch.silence = self._link.reading(patience=_SILENCE)
            batch.silence.add_done_callback(lambda read: self._read(read, quiet))

    def _is_full(self, size: int) -> bool:
        return self._bytes + size > _WINDOW or len(self._pending) >= _MOST

    def _read(self, read: asyncio.Future[None], numbers: Sequence[int]) -> None:
        """Confirm what the server has read without saying that nobody takes it."""
        if read.cancelled() or read.exception():
            return  # all is confirmed, or `detach` has settled it
        for job in self._unsettled(numbers):
            self._settle(job, None)

    def _unsettled(self, numbers: Sequence[int]) -> list[Job]:
        pending = self._pending
        return [pending[number] for number in numbers if number in pending]

    def _refused(self, job: Job, most: int) -> PublishError | None:
        """Return why a message cannot be sent."""
        size = len(job.body)
        if size > most:
            return MessageTooLarge(size, most)
        if size + len(job.headers) > self._link.max_payload:  # the server would close the connection
            return MessageTooLarge(size + len(job.headers), self._link.max_payload)
        if not _is_subject(job.subject):
            return PublishRejected(f"{job.subject!r} is no subject")
        return None

    def _write(self, client: NatsClient, chunk: list[Job]) -> None:
        frames = [self._frame(job) for job in chunk]
        try:
            if self._link.client is not client:
                raise errors.ConnectionClosedError
            client.write(*frames, now=True)
        except errors.Error as exc:
            error = Busy("the connection was lost before the message was sent")
            error.__cause__ = exc
            for job in chunk:
                self._settle(job, error)

    def _frame(self, job: Job) -> tuple[bytes, ...]:
        self._next = job.number = self._next + 1
        self._pending[job.number] = job
        self._bytes += len(job.body)
        if job.mode is Mode.CAST:
            return frame(job.subject, job.body, "", job.headers)
        if job.reply_to:
            self._asked[job.id] = job
            self._requests[job.number] = (job.reply_to, job.id)
            if len(self._requests) > _REMEMBERED:
                self._requests.popitem(last=False)
        return frame(job.subject, job.body, f"{self._prefix}{job.number}", job.headers)

    def answered(self, request_id: str) -> None:
        """Confirm a request: who answers it has got it."""
        job = self._asked.get(request_id)
        if job is not None:
            self._requests.pop(job.number, None)
            self._settle(job, None)

    def _settle(self, job: Job, error: PublishError | None) -> None:
        if self._pending.pop(job.number, None) is None:
            return  # it was settled before
        self._bytes -= len(job.body)
        if job.reply_to:
            self._asked.pop(job.id, None)
        self._room.set()
        if job.batch is not None:
            job.batch.take(job, error)
        elif job.done is not None:
            job.done(error)

    def _stored(self, number: int) -> None:
        job = self._pending.get(number)
        if job is not None:
            self._settle(job, None)

    def _answered(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        number = int(subject[len(self._prefix) :])
        if body.startswith(b"{") and b'"stream"' in body and b'"error"' not in body:
            self._stored(number)
            return
        job = self._pending.get(number)
        request = self._requests.pop(number, None)
        nobody = not body and headers.startswith(_NOBODY)
        if request is not None and not nobody:
            self._on_answer(*request, self._link.message(subject, reply, headers, body))
        if job is not None:
            self._settle(job, self._verdict(job, body, nobody=nobody))

    def _complained(self, text: str) -> None:
        """Refuse what the server drops for want of permission: it tells the connection, not the message."""
        if match := _FORBIDDEN.search(text):
            for job in list(self._pending.values()):
                if job.subject.lower() == match[1]:
                    self._settle(job, PublishRejected(f"no permission to publish to {job.subject!r}"))

    def _verdict(self, job: Job, data: bytes, *, nobody: bool) -> PublishError | None:
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


def _chunks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield *jobs* in portions that are written at once."""
    chunk: list[Job] = []
    size = 0
    for job in jobs:
        chunk.append(job)
        size += len(job.body)
        if size > _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@lru_cache(maxsize=4096)
def _is_subject(text: str) -> bool:
    """Tell whether *text* can be published to; reply addresses come from strangers."""
    return bool(text) and not _UNSAFE.search(text)
