"""Publishing: pipelined confirms, each resolved to the very message it is about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from amqp import spec
from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed

from msgbus.adapter import ID, Clock
from msgbus.errors import (
    BrokerUnavailable,
    ConfirmLost,
    NotSent,
    PublishError,
    PublishRejected,
    Unroutable,
)
from msgbus_rabbitmq._channel import Channel, content_frames
from msgbus_rabbitmq._errors import Interrupted, reason, translate
from msgbus_rabbitmq._layout import Route
from msgbus_rabbitmq._link import Link
from msgbus_rabbitmq._message import encode_content, read_headers

__all__ = ["Parcel", "Publisher"]

Done = Callable[[PublishError | None], None]
_WINDOW = 2000
"""Messages unconfirmed at once. Smaller stalls while the broker syncs its disk; larger only costs memory."""


@dataclass(slots=True)
class Parcel:
    """A message with its route.

    Attributes:
        route: Where it goes.
        headers: Its headers.
        body: Its body.
    """

    route: Route
    headers: Mapping[str, str]
    body: bytes


class Publisher:
    """Publishes on a link, through one confirming channel that is opened again whenever it is lost."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._line: _Line | None = None
        self._opening = asyncio.Lock()
        self._waiting = 0  # calls of `send` that are not all written yet

    def post(self, parcel: Parcel, done: Done) -> bool:
        """Publish at once, if that needs no waiting; *done* is told what `send` would return for the message.

        Returns:
            False if it would have to wait, or cannot be encoded: then *done* is never called.
        """
        line = self._line
        if line is None or self._waiting or not line.channel.is_open or not line.has_room:
            return False
        try:
            frames = _encode(line.channel, parcel, int(self._clock.now()))
        except (NotSent, ValueError):
            return False  # `send` says why
        line.write(frames, done, parcel)
        return True

    async def send(self, parcels: Sequence[Parcel]) -> list[PublishError | None]:
        """Publish; return each message's own result once the broker has confirmed or refused all.

        Raises:
            BrokerUnavailable: Nothing was sent.
        """
        if not parcels:
            return []
        job = _Job(len(parcels))
        self._waiting += 1
        try:
            await self._write(await self._open(), parcels, job)
        finally:
            self._waiting -= 1
        await job.done
        return job.results

    async def _write(self, line: _Line, parcels: Sequence[Parcel], job: _Job) -> None:
        timestamp = int(self._clock.now())
        for index, parcel in enumerate(parcels):
            if not line.has_room:
                await line.room()
            if not line.channel.is_open:
                self._interrupt(line, job, index)
                break
            try:
                frames = _encode(line.channel, parcel, timestamp)
            except NotSent as exc:
                job.resolve(index, exc)
            except ValueError as exc:
                error = PublishRejected(f"the message cannot be encoded: {exc}")
                error.__cause__ = exc
                job.resolve(index, error)
            else:
                line.write(frames, partial(job.resolve, index), parcel)

    async def _open(self) -> _Line:
        if self._line is not None and self._line.channel.is_open:
            return self._line
        async with self._opening:
            if self._line is None or not self._line.channel.is_open:
                wire = self._link.require()
                try:
                    channel = await wire.channel()
                    await channel.call(spec.Confirm.Select, "b", False)
                except Exception as exc:
                    raise translate(exc, "cannot publish") from exc
                self._line = _Line(channel)
            return self._line

    def _interrupt(self, line: _Line, job: _Job, first: int) -> None:
        why = reason(line.channel.closed.result())
        if first == 0:
            raise BrokerUnavailable(f"the connection is lost: {why}")
        for index in range(first, len(job.results)):
            job.resolve(index, Interrupted(f"not sent, the connection is lost: {why}"))


class _Job:
    """One call's messages: their results, and a future that is done when all are in."""

    __slots__ = ("_left", "done", "results")

    def __init__(self, size: int) -> None:
        self.results: list[PublishError | None] = [None] * size
        self._left = size
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def resolve(self, index: int, error: PublishError | None) -> None:
        if error is not None:
            self.results[index] = error
        self._left -= 1
        if not self._left and not self.done.done():
            self.done.set_result(None)


def _encode(channel: Channel, parcel: Parcel, timestamp: int) -> Sequence[bytes]:
    """Return a message's frames, in parts.

    Raises:
        PublishRejected: Its headers are too long.
        ValueError: They cannot be encoded.
    """
    body, route = parcel.body, parcel.route
    native = route.native
    content = encode_content(
        {**parcel.headers, **route.extra} if route.extra else parcel.headers,
        len(body),
        timestamp=timestamp,
        persistent=route.persistent,
        priority=native.priority,
        expiration=None if native.expiration is None else str(native.expiration),
    )
    chunk = channel.wire.frame_max - 8
    if len(content) > chunk:
        raise PublishRejected(f"the headers take {len(content)} bytes, more than the broker's frame of {chunk}")
    return content_frames(channel.number, route.method, content, body, chunk)


class _Line:
    """A confirming channel and what is unconfirmed on it, by delivery tag."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._tag = 0
        self._pending: dict[int, tuple[Done, Parcel]] = {}
        self._returned: dict[int, str] = {}
        self._room = asyncio.Event()
        channel.on_confirm = self._on_confirm
        channel.on_return = self._on_return
        channel.closed.add_done_callback(lambda closed: self._on_closed(closed.result()))

    @property
    def has_room(self) -> bool:
        return len(self._pending) < _WINDOW and self.channel.wire.is_writable

    async def room(self) -> None:
        """Return when another message may be sent, or the channel is closed."""
        while self.channel.is_open and not self.has_room:
            if len(self._pending) >= _WINDOW:
                self._room.clear()
                await self._room.wait()
            else:
                await self.channel.wire.flowing()

    def write(self, frames: Sequence[bytes], done: Done, parcel: Parcel) -> None:
        self._tag += 1
        self._pending[self._tag] = done, parcel
        self.channel.wire.write(*frames)

    def _on_confirm(self, tag: int, multiple: bool, accepted: bool) -> None:
        pending = self._pending
        if multiple:
            tags = []
            for unconfirmed in pending:
                if unconfirmed > tag:
                    break
                tags.append(unconfirmed)
            if accepted and not self._returned:
                for unconfirmed in tags:
                    pending.pop(unconfirmed)[0](None)
            else:
                for unconfirmed in tags:
                    self._resolve(unconfirmed, accepted)
        elif tag in pending:
            self._resolve(tag, accepted)
        self._room.set()

    def _resolve(self, tag: int, accepted: bool) -> None:
        done, _ = self._pending.pop(tag)
        error: PublishError | None = None
        if self._returned and (text := self._returned.pop(tag, None)):
            error = Unroutable(text)
        elif not accepted:
            error = PublishRejected("the broker refused the message: a queue it belongs to is full or not available")
        done(error)

    def _on_return(self, arguments: list[Any], header: bytes, body: bytes) -> None:
        """Note which message came back; its confirm is still to come.

        A return carries no delivery tag. Messages of one id to one place are all unroutable or none, so the first
        that fits and was not returned yet is the right one.
        """
        code, text, exchange, key = arguments
        returned_id = read_headers(header)[0].get(ID)
        for tag, (_, parcel) in self._pending.items():
            route = parcel.route
            if (
                tag not in self._returned
                and route.key == key
                and route.exchange == exchange
                and parcel.headers.get(ID) == returned_id
            ):
                where = f"exchange {exchange!r} with routing key {key!r}" if exchange else f"queue {key!r}"
                self._returned[tag] = f"nothing takes the message: {where}: {code} {text}"
                return

    def _on_closed(self, why: BaseException) -> None:
        pending, self._pending = self._pending, {}
        for done, parcel in pending.values():
            done(_verdict(why, parcel))
        self._room.set()


def _verdict(why: BaseException, parcel: Parcel) -> PublishError:
    """Return what the loss of the channel means for one message: only what the broker names is certain."""
    text = reason(why)
    error: PublishError = ConfirmLost(f"the connection broke before the broker's answer: {text}")
    quoted = f"'{parcel.route.exchange or 'amq.default'}'"
    if isinstance(why, NotFound | AccessRefused) and why.method_sig == spec.Basic.Publish and quoted in text:
        error = Unroutable(text) if isinstance(why, NotFound) else PublishRejected(text)
    elif isinstance(why, PreconditionFailed) and f"message size {len(parcel.body)} is larger than" in text:
        error = PublishRejected(text)
    error.__cause__ = why
    return error
