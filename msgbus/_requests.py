"""Request-reply: one private reply address per bus, answers matched to requests by correlation id."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

from msgbus._backoff import RECONNECT
from msgbus._channel import Answered
from msgbus._deadlines import Deadlines
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
        self._deadlines: Deadlines[asyncio.Future[Received]] = Deadlines(_give_up)
        self.late = 0

    async def request(self, outgoing: Outgoing, timeout: float) -> Received:
        """Send a request and return its answer.

        Raises:
            RequestTimeout: There was none within *timeout* seconds.
            RemoteError: The responder failed.
            PublishError: The request was not sent.
        """
        self._address(outgoing, self._subscription or await self._open())
        future: asyncio.Future[Received] = asyncio.get_running_loop().create_future()
        self._pending[outgoing.id] = future
        # One future for all that may happen, and no timer of its own: much cheaper than a timeout around two awaits.
        self._deadlines.add(future, timeout)
        try:
            sending = self._publisher.start(outgoing, partial(_not_sent, future))
            try:
                answer = await future
            except BaseException:
                if sending is not None:
                    sending.cancel()
                raise
        except _Overdue:
            text = f"no answer from {outgoing.target} within {timeout:g} s; it may still be handled"
            raise RequestTimeout(text) from None
        finally:
            self._deadlines.discard(future)
            del self._pending[outgoing.id]
        if not answer.plain and (error := remote_error(answer)) is not None:
            raise error
        return answer

    async def gather(self, outgoing: Outgoing, timeout: float, is_enough: Callable[[Received], bool]) -> None:
        """Send a request to many and hand over each answer until one *is_enough*, or time is up.

        Raises:
            PublishError: The request was not sent.
        """
        self._address(outgoing, self._subscription or await self._open())
        answers = self._pending[outgoing.id] = _Answers()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._publisher.publish(outgoing)
                    while not is_enough(await answers.get()):
                        pass
        finally:
            del self._pending[outgoing.id]

    def _address(self, outgoing: Outgoing, subscription: Subscription) -> None:
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
                subscription.deliver = self._deliver
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
                    self._deliver(received)
                if answers:
                    await subscription.settle([Ack(received) for received in answers])
            except BrokerUnavailable as exc:
                failures += 1
                if failures == 1:
                    _log.warning("cannot receive answers, trying again: %s", exc)
                await asyncio.sleep(RECONNECT.delay(failures))
            else:
                failures = 0

    def _deliver(self, received: Received) -> bool:
        future = self._pending.get(received.correlation or received.headers.get(CORRELATION_ID, ""))
        if future is None or future.done():
            self.late += 1
        else:
            future.set_result(received)
        return True

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
        self._type = f"{channel.name}.reply"
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
        headers[SPECVERSION] = "1.0"
        headers[ID] = message_id = new_id()
        headers[TYPE] = self._type
        headers[SOURCE] = self._service
        headers[TIME] = self._time(self._clock.now())
        if ID in request:
            headers[CAUSATION_ID] = request[ID]
        if correlation := request.get(CORRELATION_ID) or request.get(ID):
            headers[CORRELATION_ID] = correlation
        outgoing = Outgoing(_reply_address(reply_to), body, headers, message_id)
        try:
            self._publisher.post(outgoing, partial(self._sent, received))
        except PublishError as exc:
            detail = {"type": type(exc).__name__, "detail": f"the answer cannot be sent: {exc}"}
            return self._send(received, b"", {ERROR: json.dumps(detail)})
        return None

    def _sent(self, received: Received, error: BaseException | None) -> None:
        if error is not None:
            _log.info("an answer to %r was not delivered, its caller has gone: %s", self._channel.name, error)
        self._settle(Ack(received))


@lru_cache(maxsize=256)
def _reply_address(name: str) -> Address:
    return Address(Kind.REPLY, name)


def _not_sent(future: asyncio.Future[Received], error: BaseException | None) -> None:
    if error is not None and not future.done():
        future.set_exception(error)


def _give_up(future: asyncio.Future[Received]) -> None:
    if not future.done():
        future.set_exception(_Overdue)


class _Overdue(Exception):
    """There was no answer in time."""


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
