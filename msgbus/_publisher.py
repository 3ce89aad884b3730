"""Publishing: gather into batches, wait for each message's own confirmation, retry what can be retried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from functools import partial

from msgbus._backoff import RECONNECT
from msgbus._batcher import Batcher
from msgbus._deadlines import Deadlines
from msgbus._message import Message
from msgbus._time import Clock
from msgbus.adapter import Adapter, Outgoing
from msgbus.errors import (
    BrokerUnavailable,
    MessageTooLarge,
    MsgbusError,
    NotSent,
    PublishError,
    PublishFailed,
    PublishTimeout,
    UnsupportedFeature,
)

__all__ = ["PublishMiddleware", "Publisher"]

PublishMiddleware = Callable[[Message, Callable[[Message], Awaitable[None]]], Awaitable[None]]
Done = Callable[[BaseException | None], None]
_WINDOW = 10_000
"""Messages that may be unconfirmed at once; whoever publishes more waits. Smaller throttles fast brokers, larger
costs memory while a broker is away."""


class Publisher:
    """Publishes to one adapter.

    Args:
        adapter: Where to.
        timeout: Seconds until an unconfirmed publish is given up.
        max_body: The largest body in bytes, where the adapter takes larger ones.
        clock: The bus's.
        middleware: Called around each publish, outermost first.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        timeout: float,
        max_body: int,
        clock: Clock,
        middleware: Sequence[PublishMiddleware] = (),
    ) -> None:
        capabilities = adapter.capabilities
        self._adapter = adapter
        self._timeout = timeout
        self._clock = clock
        self._middleware = middleware
        self.max_batch = capabilities.max_batch
        self._max_body = min(capabilities.max_body, max_body)
        self._max_delay = capabilities.max_delay
        self._batcher: Batcher[_Pending] = Batcher(
            self._flush, max_batch=capabilities.max_batch, in_flight=capabilities.publish_window
        )
        self._unconfirmed = 0
        self._room = asyncio.Event()
        self._posted: Deadlines[_Pending] = Deadlines(self._give_up)

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

    def start(self, outgoing: Outgoing, done: Done) -> asyncio.Future[None] | None:
        """Begin what `publish` does; *done* is told what became of it.

        Returns:
            What can be cancelled to give the message up, unless that makes no difference any more.
        """
        if not self._middleware and self._unconfirmed < _WINDOW:
            self.post(outgoing, done)
            return None
        publishing = asyncio.ensure_future(self.publish(outgoing))
        publishing.add_done_callback(partial(_tell, done))
        return publishing

    def submit(self, outgoing: Outgoing) -> asyncio.Future[None]:
        """Hand a message over without waiting for room in the window; the future tells what became of it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.post(outgoing, partial(_resolve, future))
        return future

    def post(self, outgoing: Outgoing, done: Done) -> None:
        """Hand a message over without waiting for room in the window; *done* is told what became of it."""
        self.check(outgoing)
        self._unconfirmed += 1
        pending = _Pending(outgoing, done)
        # What waits in the batcher was handed over before, and must not be overtaken.
        if len(self._batcher) or not self._adapter.post(outgoing, partial(self._told, pending)):
            self._batcher.add(pending)
        else:
            self._posted.add(pending, self._timeout)

    def _told(self, pending: _Pending, error: PublishError | None) -> None:
        """Take what the adapter says of a message that it was posted."""
        if error is None or not error.retryable or pending.done is None:
            self._finish(pending, error)
        else:
            pending.maybe_sent = not isinstance(error, NotSent)
            self._batcher.add(pending)

    def _give_up(self, pending: _Pending) -> None:
        """Fail what was posted too long ago."""
        self._finish(pending, self._timed_out(None, sent=True))

    def _finish(self, pending: _Pending, error: Exception | None) -> None:
        done, pending.done = pending.done, None
        self._posted.discard(pending)
        if done is not None:  # it was not given up before
            self._unconfirmed -= 1
            self._room.set()
            done(error)

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
        while self._unconfirmed:
            self._room.clear()
            await self._room.wait()
        self._posted.stop()

    async def _publish_batch(
        self, first: int, batch: Sequence[Outgoing | MsgbusError], failures: dict[int, MsgbusError]
    ) -> None:
        outgoing: list[Outgoing] = []
        indices: list[int] = []
        for index, item in enumerate(batch, first):
            try:
                if isinstance(item, MsgbusError):
                    raise item
                self.check(item)
            except MsgbusError as exc:
                failures[index] = exc
            else:
                outgoing.append(item)
                indices.append(index)
        try:
            if self._middleware:
                results = await asyncio.gather(*map(self._caught, outgoing))
            else:
                results = list(await self._confirm(outgoing))
        except MsgbusError as exc:  # the bus was closed meanwhile
            failures.update(dict.fromkeys(indices, exc))
        else:
            if any(results):
                failures.update({index: error for index, error in zip(indices, results, strict=True) if error})

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
        maybe_sent = {index for index, pending in enumerate(batch) if pending.maybe_sent}
        try:
            results = await self._confirm([pending.outgoing for pending in batch], maybe_sent)
        except BaseException as exc:
            error = exc if isinstance(exc, Exception) else NotSent("the bus was closed")
            for pending in batch:
                self._finish(pending, error)
            raise
        for pending, result in zip(batch, results, strict=True):
            self._finish(pending, result)

    async def _confirm(
        self, batch: Sequence[Outgoing], maybe_sent: set[int] | None = None
    ) -> Sequence[PublishError | None]:
        """Publish until each message is confirmed, refused for good, or out of time."""
        results: list[PublishError | None] = [None] * len(batch)
        pending: Sequence[int] = range(len(batch))
        maybe_sent = maybe_sent or set()
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


class _Pending:
    """A message on its way, and who is to be told what became of it."""

    __slots__ = ("done", "maybe_sent", "outgoing")

    def __init__(self, outgoing: Outgoing, done: Done) -> None:
        self.outgoing = outgoing
        self.done: Done | None = done
        self.maybe_sent = False


def _resolve(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return  # the caller was cancelled
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _tell(done: Done, publishing: asyncio.Future[None]) -> None:
    if not publishing.cancelled():
        done(publishing.exception())


async def _next_done(tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait until one of the tasks has ended, raise what it raised, return those that still run."""
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if not task.cancelled():
            task.result()
    return rest


def _wrap(
    layer: PublishMiddleware, call_next: Callable[[Message], Awaitable[None]]
) -> Callable[[Message], Awaitable[None]]:
    return lambda message: layer(message, call_next)
