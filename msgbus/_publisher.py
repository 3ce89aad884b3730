"""Publishing: encode, gather into batches, wait for each message's own confirmation, retry what can be retried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from msgbus._backoff import RECONNECT
from msgbus._batcher import Batcher
from msgbus._channel import Channel
from msgbus._delivery import Delivery
from msgbus._message import (
    CAUSATION_ID,
    CONTENT_TYPE,
    CORRELATION_ID,
    EXPIRES,
    ID,
    KEY,
    SOURCE,
    SPECVERSION,
    TIME,
    TRACEPARENT,
    TRACESTATE,
    TYPE,
    Message,
    Stamps,
    check_headers,
    format_time,
    new_id,
)
from msgbus._time import Clock, Duration, seconds
from msgbus.adapter import Adapter, Address, Outgoing
from msgbus.errors import (
    BrokerUnavailable,
    EncodeError,
    MessageTooLarge,
    MsgbusError,
    NotSent,
    PublishError,
    PublishFailed,
    PublishTimeout,
    UnsupportedFeature,
)

__all__ = ["Cause", "Encoder", "PublishMiddleware", "Publisher"]

PublishMiddleware = Callable[[Message, Callable[[Message], Awaitable[None]]], Awaitable[None]]
Cause = Delivery[Any] | Message
_WINDOW = 10_000
"""Messages that may be unconfirmed at once; whoever publishes more waits. Smaller throttles fast brokers, larger
costs memory while a broker is away."""


class Encoder:
    """Turns payloads and options into messages on their way out.

    Args:
        service: Written as ``ce-source``.
        clock: Tells the publish time.
    """

    def __init__(self, service: str, clock: Clock) -> None:
        self._service = service
        self._clock = clock
        self._time = Stamps()
        self._expiry = Stamps()

    def __call__(
        self,
        channel: Channel[Any],
        address: Address,
        payload: Any,
        *,
        key: str | None = None,
        delay: Duration = 0.0,
        expires: Duration | datetime | None = None,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        correlation_id: str | None = None,
        cause: Cause | None = None,
    ) -> Outgoing:
        """Return the outgoing message; raises `EncodeError` when something does not fit."""
        kind, body = channel.encode(payload)
        now = self._clock.now()
        message_id = new_id() if id is None else _text("id", id)
        wire = {
            SPECVERSION: "1.0",
            ID: message_id,
            TYPE: kind,
            SOURCE: self._service,
            TIME: self._time(now),
            CONTENT_TYPE: channel.codec.content_type,
        }
        if headers:
            wire.update(check_headers(headers))
        if key is None and channel.key_of is not None:
            key = channel.key_of(payload)
        if key is not None:
            wire[KEY] = _text("key", key)
        if expires is not None:
            wire[EXPIRES] = _end(expires) if isinstance(expires, datetime) else self._after(expires, now)
        if cause is not None:
            _add_cause(wire, cause)
        if correlation_id is not None:
            wire[CORRELATION_ID] = _text("correlation_id", correlation_id)
        return Outgoing(address, body, wire, message_id, key, seconds(delay, "delay=") if delay else 0.0)

    def _after(self, expires: Duration, now: float) -> str:
        return self._expiry(now + seconds(expires, "expires="))


class Publisher:
    """Publishes to one adapter.

    Args:
        adapter: Where to.
        timeout: Seconds until an unconfirmed publish is given up.
        clock: The bus's.
        middleware: Called around each publish, outermost first.
    """

    def __init__(
        self, adapter: Adapter, *, timeout: float, clock: Clock, middleware: Sequence[PublishMiddleware] = ()
    ) -> None:
        capabilities = adapter.capabilities
        self._adapter = adapter
        self._timeout = timeout
        self._clock = clock
        self._middleware = middleware
        self.max_batch = capabilities.max_batch
        self._max_body = capabilities.max_body
        self._max_delay = capabilities.max_delay
        self._batcher: Batcher[_Pending] = Batcher(
            self._flush, max_batch=capabilities.max_batch, in_flight=capabilities.publish_window
        )
        self._unconfirmed = 0
        self._room = asyncio.Event()

    async def publish(self, outgoing: Outgoing) -> None:
        """Publish a message; return once the broker has confirmed it.

        Raises:
            PublishError: It was not confirmed; the class says whether the broker may have it.
        """
        if self._middleware:
            await self._chain(outgoing)
        else:
            await self._publish(outgoing)

    async def _publish(self, outgoing: Outgoing) -> None:
        while self._unconfirmed >= _WINDOW:
            self._room.clear()
            await self._room.wait()
        await self.submit(outgoing)

    def start(self, outgoing: Outgoing) -> asyncio.Future[None]:
        """Begin what `publish` does; the future tells what became of it. Cancelling it gives the message up."""
        if self._middleware or self._unconfirmed >= _WINDOW:
            return asyncio.ensure_future(self.publish(outgoing))
        return self.submit(outgoing)

    def submit(self, outgoing: Outgoing) -> asyncio.Future[None]:
        """Hand a message over without waiting for room in the window; the future tells what became of it."""
        self.check(outgoing)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unconfirmed += 1
        self._batcher.add(_Pending(outgoing, future))
        return future

    async def publish_many(self, batches: AsyncIterable[list[Outgoing | MsgbusError]]) -> int:
        """Publish messages in batches, several under way at once; return how many.

        Args:
            batches: Up to `max_batch` messages each, and in the place of one that could not be encoded its error.

        Raises:
            PublishFailed: Some were not confirmed; says which. All the others were.
        """
        failures: dict[int, MsgbusError] = {}
        total = 0
        running: set[asyncio.Task[None]] = set()
        try:
            async for batch in batches:
                if len(running) > self._adapter.capabilities.publish_window:
                    running = await _next_done(running)
                running.add(asyncio.create_task(self._publish_batch(total, batch, failures)))
                total += len(batch)
        except asyncio.CancelledError:
            for task in running:
                task.cancel()
            raise
        finally:  # also when the caller's own iterable failed: what it gave before is published
            while running:
                running = await _next_done(running)
        if failures:
            raise PublishFailed(dict(sorted(failures.items())), total)
        return total

    def check(self, outgoing: Outgoing) -> None:
        """Refuse at once what the adapter cannot take."""
        if len(outgoing.body) > self._max_body:
            raise MessageTooLarge(len(outgoing.body), self._max_body)
        if outgoing.delay > self._max_delay:
            limit = f"its longest is {self._max_delay:g} s" if self._max_delay else "it has none"
            raise UnsupportedFeature(self._adapter.name, f"a delay of {outgoing.delay:g} s", limit)

    async def aclose(self) -> None:
        """Wait for what is under way, then stop."""
        await self._batcher.drain()

    async def _publish_batch(
        self, first: int, batch: Sequence[Outgoing | MsgbusError], failures: dict[int, MsgbusError]
    ) -> None:
        good: list[tuple[int, Outgoing]] = []
        for index, item in enumerate(batch, first):
            try:
                if isinstance(item, MsgbusError):
                    raise item
                self.check(item)
                good.append((index, item))
            except MsgbusError as exc:
                failures[index] = exc
        outgoing = [item for _, item in good]
        try:
            if self._middleware:
                results = await asyncio.gather(*map(self._caught, outgoing))
            else:
                results = list(await self._confirm(outgoing))
        except MsgbusError as exc:  # the bus was closed meanwhile
            failures.update({index: exc for index, _ in good})
        else:
            if any(results):
                failures.update({index: error for (index, _), error in zip(good, results, strict=True) if error})

    async def _caught(self, outgoing: Outgoing) -> PublishError | None:
        try:
            await self._chain(outgoing)
        except PublishError as exc:
            return exc
        return None

    async def _chain(self, outgoing: Outgoing) -> None:
        async def innermost(message: Message) -> None:
            outgoing.body, outgoing.headers = message.body, message.to_wire()
            outgoing.id, outgoing.key = message.id, message.key
            await self._publish(outgoing)

        call: Callable[[Message], Awaitable[None]] = innermost
        for layer in reversed(self._middleware):
            call = _wrap(layer, call)
        await call(Message.from_wire(outgoing.body, outgoing.headers, outgoing.key))

    async def _flush(self, batch: list[_Pending]) -> None:
        try:
            results = await self._confirm([pending.outgoing for pending in batch])
        except BaseException as exc:
            for pending in batch:
                if not pending.future.done():
                    pending.future.set_exception(exc if isinstance(exc, Exception) else NotSent("the bus was closed"))
            raise
        finally:
            self._unconfirmed -= len(batch)
            self._room.set()
        for pending, error in zip(batch, results, strict=True):
            if pending.future.done():
                continue  # the caller was cancelled
            if error is None:
                pending.future.set_result(None)
            else:
                pending.future.set_exception(error)

    async def _confirm(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        """Publish until each message is confirmed, refused for good, or out of time."""
        results: list[PublishError | None] = [None] * len(batch)
        pending: Sequence[int] = range(len(batch))
        maybe_sent: set[int] = set()
        failures = 0
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    outcome = await self._attempt([batch[i] for i in pending], pending, maybe_sent)
                    if not failures and not any(outcome):
                        break  # as nearly always
                    for index, error in zip(pending, outcome, strict=True):
                        results[index] = error
                    pending = [i for i, error in zip(pending, outcome, strict=True) if error and error.retryable]
                    if not pending:
                        break
                    failures += 1
                    await self._clock.sleep(RECONNECT.delay(failures))
        except TimeoutError:
            for index in pending:
                results[index] = self._timed_out(results[index], sent=index in maybe_sent)
        return results

    async def _attempt(
        self, batch: list[Outgoing], indices: Sequence[int], maybe_sent: set[int]
    ) -> Sequence[PublishError | None]:
        maybe_sent_before = set(maybe_sent)
        maybe_sent.update(indices)  # until we are told otherwise
        try:
            results = await self._adapter.publish(batch)
        except BrokerUnavailable as exc:
            maybe_sent.clear()
            maybe_sent.update(maybe_sent_before)
            return [_Unavailable.because(exc)] * len(batch)
        if any(results):
            for index, error in zip(indices, results, strict=True):
                if isinstance(error, NotSent) and index not in maybe_sent_before:
                    maybe_sent.discard(index)
        return results

    def _timed_out(self, last: PublishError | None, *, sent: bool) -> PublishError:
        why = f" (last: {last})" if last else ""
        if sent:
            return PublishTimeout(f"not confirmed within {self._timeout:g} s; the broker may have it{why}")
        error = NotSent(f"the broker could not be reached within {self._timeout:g} s{why}")
        error.__cause__ = last
        return error


class _Unavailable(NotSent):
    """The broker is away: tried again until the timeout."""

    retryable = True

    @classmethod
    def because(cls, exc: BrokerUnavailable) -> _Unavailable:
        error = cls(str(exc))
        error.__cause__ = exc
        return error


class _Pending(NamedTuple):
    outgoing: Outgoing
    future: asyncio.Future[None]


async def _next_done(tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait until one of the tasks has ended, raise what it raised, return those that still run."""
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if not task.cancelled():
            task.result()
    return rest


def _add_cause(wire: dict[str, str], cause: Cause) -> None:
    message = cause.message if isinstance(cause, Delivery) else cause
    wire[CAUSATION_ID] = message.id
    wire[CORRELATION_ID] = message.correlation_id or message.id
    for name in (TRACEPARENT, TRACESTATE):
        if name in message.headers:
            wire.setdefault(name, message.headers[name])


def _text(option: str, value: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 512 or not value.isprintable():
        raise EncodeError(f"{option}= takes 1 to 512 printable characters, got {value!r:.80}")
    return value


def _end(expires: datetime) -> str:
    if expires.tzinfo is None:
        raise EncodeError("expires= takes a datetime with a time zone, or a number of seconds")
    return format_time(expires)


def _wrap(
    layer: PublishMiddleware, call_next: Callable[[Message], Awaitable[None]]
) -> Callable[[Message], Awaitable[None]]:
    return lambda message: layer(message, call_next)
