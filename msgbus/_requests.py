"""Request-reply: one private reply address per bus, answers matched to requests by correlation id."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from msgbus._backoff import RECONNECT
from msgbus._channel import Answered
from msgbus._failure import Crashed
from msgbus._message import (
    CAUSATION_ID,
    CONTENT_TYPE,
    CORRELATION_ID,
    ERROR,
    ID,
    REPLY_TO,
    SOURCE,
    SPECVERSION,
    TIME,
    TYPE,
    Stamps,
    new_id,
)
from msgbus._publisher import Publisher
from msgbus._time import Clock
from msgbus._url import scrub
from msgbus.adapter import (
    Ack,
    Adapter,
    Address,
    DeadLetter,
    Kind,
    Outcome,
    Outgoing,
    Received,
    Source,
    SubscribeOptions,
    Subscription,
)
from msgbus.errors import BrokerUnavailable, PublishError, RemoteError, RequestTimeout, UnsupportedFeature

__all__ = ["Replier", "Requester", "remote_error"]

_log = logging.getLogger("msgbus")
_DETAIL = 1_000
_PREFETCH = 1_000


class Requester:
    """Sends requests over one adapter and waits for their answers.

    Args:
        adapter: Where to.
        publisher: Its publisher.
        name: A name for the reply address that no other bus uses.
        lease: The lease for answers in seconds.
        on_crash: Called when the loop that reads answers fails, which is a bug.
    """

    def __init__(
        self,
        adapter: Adapter,
        publisher: Publisher,
        name: str,
        *,
        lease: float,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._adapter = adapter
        self._publisher = publisher
        self._source = Source(Address(Kind.REPLY, name))
        self._lease = lease
        self._on_crash = on_crash
        self._subscription: Subscription | None = None
        self._opening = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._pending: dict[str, asyncio.Future[Received] | _Answers] = {}
        self.late = 0

    async def request(self, outgoing: Outgoing, timeout: float) -> Received:
        """Send a request and return its answer.

        Raises:
            RequestTimeout: There was none within *timeout* seconds.
            RemoteError: The responder failed.
            PublishError: The request was not sent.
        """
        await self._address(outgoing)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Received] = loop.create_future()
        self._pending[outgoing.id] = future
        # One future for all that may happen, and a bare timer: much cheaper than a timeout around two awaits.
        timer = loop.call_later(timeout, _time_out, future, outgoing.target, timeout)
        try:
            sending = self._publisher.start(outgoing)
            sending.add_done_callback(partial(_check_sent, future))
            try:
                answer = await future
            except BaseException:
                sending.cancel()
                raise
        finally:
            timer.cancel()
            del self._pending[outgoing.id]
        if (error := remote_error(answer)) is not None:
            raise error
        return answer

    async def gather(self, outgoing: Outgoing, timeout: float, is_enough: Callable[[Received], bool]) -> None:
        """Send a request to many and hand over each answer until one *is_enough*, or time is up.

        Raises:
            PublishError: The request was not sent.
        """
        await self._address(outgoing)
        answers = self._pending[outgoing.id] = _Answers()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._publisher.publish(outgoing)
                    while not is_enough(await answers.get()):
                        pass
        finally:
            del self._pending[outgoing.id]

    async def _address(self, outgoing: Outgoing) -> None:
        subscription = self._subscription or await self._open()
        outgoing.headers[REPLY_TO] = subscription.address
        outgoing.headers[CORRELATION_ID] = outgoing.id

    async def aclose(self) -> None:
        """Stop reading answers."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._subscription is not None:
            await self._subscription.aclose()

    async def _open(self) -> Subscription:
        async with self._opening:
            if self._subscription is None:
                if self._adapter.capabilities.requests == "none":
                    raise UnsupportedFeature(self._adapter.name, "requests")
                options = SubscribeOptions(prefetch=_PREFETCH, lease=self._lease)
                subscription = await self._adapter.subscribe(self._source, options)
                self._reader = asyncio.create_task(self._read(subscription))
                self._reader.add_done_callback(self._ended)
                self._subscription = subscription
            return self._subscription

    async def _read(self, subscription: Subscription) -> None:
        failures = 0
        while True:
            try:
                answers = await subscription.receive(_PREFETCH, 5.0)
                for received in answers:
                    future = self._pending.get(received.headers.get(CORRELATION_ID, ""))
                    if future is None or future.done():
                        self.late += 1
                    else:
                        future.set_result(received)
                if answers:
                    await subscription.settle([Ack(received) for received in answers])
            except BrokerUnavailable as exc:
                failures += 1
                if failures == 1:
                    _log.warning("cannot receive answers, trying again: %s", exc)
                await asyncio.sleep(RECONNECT.delay(failures))
            else:
                failures = 0

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._on_crash(error)


class _Answers(asyncio.Queue[Received]):
    """What a request to many has brought; takes answers as a future would, and is never done."""

    def done(self) -> bool:
        return False

    def set_result(self, answer: Received) -> None:
        self.put_nowait(answer)


class Replier:
    """Answers the requests of one subscription.

    Args:
        channel: What is answered.
        publisher: The adapter's.
        service: Written as ``ce-source``.
        clock: The bus's.
        settle: Settles a request once its answer is out.
    """

    def __init__(
        self,
        channel: Answered[Any, Any],
        publisher: Publisher,
        *,
        service: str,
        clock: Clock,
        settle: Callable[[Outcome], None],
    ) -> None:
        self._channel = channel
        self._publisher = publisher
        self._service = service
        self._clock = clock
        self._time = Stamps()
        self._settle = settle

    def encode(self, result: Any) -> bytes:
        """Return the body of an answer; raises `EncodeError` when the handler returned something else."""
        return self._channel.encode_reply(result)

    def answer(self, received: Received, body: bytes) -> Outcome | None:
        """Send the answer; the request is settled when it is out."""
        return self._send(received, body, {CONTENT_TYPE: self._channel.reply_codec.content_type})

    def fail(self, received: Received, outcome: DeadLetter, error: BaseException) -> Outcome | None:
        """Tell the caller why; a request that nobody waits for becomes a dead letter."""
        if REPLY_TO not in received.headers:
            return outcome
        if isinstance(error, Crashed):
            return Ack(received)  # whoever asked has given up long ago
        detail = {"type": type(error).__name__, "detail": scrub(str(error))[:_DETAIL]}
        return self._send(received, b"", {ERROR: json.dumps(detail)})

    def _send(self, received: Received, body: bytes, headers: dict[str, str]) -> Outcome | None:
        request = received.headers
        reply_to = request.get(REPLY_TO)
        if reply_to is None:
            return Ack(received)
        message_id = new_id()
        headers |= {
            SPECVERSION: "1.0",
            ID: message_id,
            TYPE: f"{self._channel.name}.reply",
            SOURCE: self._service,
            TIME: self._time(self._clock.now()),
        }
        if ID in request:
            headers[CAUSATION_ID] = request[ID]
        if correlation := request.get(CORRELATION_ID) or request.get(ID):
            headers[CORRELATION_ID] = correlation
        outgoing = Outgoing(Address(Kind.REPLY, reply_to), body, headers, message_id)
        try:
            future = self._publisher.submit(outgoing)
        except PublishError as exc:
            detail = {"type": type(exc).__name__, "detail": f"the answer cannot be sent: {exc}"}
            return self._send(received, b"", {ERROR: json.dumps(detail)})
        future.add_done_callback(lambda done: self._sent(received, done))
        return None

    def _sent(self, received: Received, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()):
            _log.info("an answer to %r was not delivered, its caller has gone: %s", self._channel.name, error)
        self._settle(Ack(received))


def _check_sent(future: asyncio.Future[Received], sending: asyncio.Future[None]) -> None:
    if not sending.cancelled() and (error := sending.exception()) and not future.done():
        future.set_exception(error)


def _time_out(future: asyncio.Future[Received], target: object, timeout: float) -> None:
    if not future.done():
        text = f"no answer from {target} within {timeout:g} s; it may still be handled"
        future.set_exception(RequestTimeout(text))


def remote_error(answer: Received) -> RemoteError | None:
    """Return the responder's error if that is what it answered."""
    text = answer.headers.get(ERROR)
    if text is None:
        return None
    try:
        data = dict(json.loads(text))
        return RemoteError(str(data["type"]), str(data["detail"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return RemoteError("Error", text[:_DETAIL])
