"""Consuming from core NATS: requests, answers, and topics that may lose messages.

The server pushes such messages to whoever listens and keeps nothing. What a handler gives back is handed out again
by this process; requests that are left over when it stops are passed on to another responder.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from msgbus.adapter import (
    CORRELATION_ID,
    ERROR,
    REPLY_TO,
    DeadLetter,
    Kind,
    Nack,
    Outcome,
    Received,
    Source,
    Subscription,
)
from msgbus.errors import BrokerUnavailable, ClosedError, LeaseLost, MsgbusError, SettleError
from msgbus_nats._answers import Answers, Tools
from msgbus_nats._client import frame
from msgbus_nats._headers import decode_block, decode_headers, encode_headers, parse_headers
from msgbus_nats._names import in_partition

__all__ = ["LiveSubscription"]

_log = logging.getLogger("msgbus.nats")
_CORRELATION = f"\r\n{CORRELATION_ID}: ".encode()
_ERROR = f"\r\n{ERROR}:".encode()
_QUEUE = "msgbus"
"""The queue group of responders."""
_MOST = 65_536
"""Messages that wait at most. Core NATS cannot be told to stop; beyond this the newest are dropped, and it is said."""


class _Pushed(Received):
    """A message as the server pushed it; nats-py's own is made for who asks for it."""

    __slots__ = ("_block", "_client", "_subject", "reply")

    key = position = receipt = correlation = None
    plain = False

    def __init__(
        self,
        client: Client,
        subject: bytes,
        reply: bytes,
        block: bytes,
        body: bytes,
        headers: dict[str, str],
        channel: str,
    ) -> None:
        self._client = client
        self._subject = subject
        self._block = block
        self.reply = reply.decode()
        self.body = body
        self.headers = headers
        self.deliveries = 1
        self.channel = channel

    @property
    def raw(self) -> Msg:
        """The library's message."""
        return Msg(self._client, self._subject.decode(), self.reply, self.body, parse_headers(self._block))


class _Answer(Received):
    """An answer that says which request it is for, and nothing of an error: its headers are decoded for who asks."""

    __slots__ = ("_block", "_headers")

    channel = ""
    key = position = receipt = raw = None
    plain = True

    @classmethod
    def of(cls, block: bytes, body: bytes) -> _Answer | None:
        """Return the answer, if it is of that kind."""
        at = block.find(_CORRELATION)
        if at < 0 or _ERROR in block:
            return None
        at += len(_CORRELATION)
        request_id = block[at : block.find(b"\r\n", at) + 1].removesuffix(b"\r")
        return cls(request_id.decode(), block, body) if request_id.isalnum() else None  # as the core's ids are

    def __init__(self, correlation: str, block: bytes, body: bytes) -> None:
        self._block = block
        self._headers: dict[str, str] | None = None
        self.correlation = correlation
        self.body = body
        self.deliveries = 1

    @property
    def headers(self) -> dict[str, str]:  # type: ignore[override]
        """The answer's headers."""
        if self._headers is None:
            self._headers = decode_block(self._block)
        return self._headers


class LiveSubscription(Subscription):
    """One consumer of a core NATS subject.

    Args:
        tools: The adapter's.
        source: What is consumed.
    """

    def __init__(self, tools: Tools, source: Source) -> None:
        self._tools = tools
        self._link = tools.link
        self._source = source
        self._answers = Answers(tools, source)
        kind, name = source.address.kind, source.address.name
        self._queue = "" if kind is Kind.REPLY else _QUEUE if kind is Kind.REQUEST else source.group
        if kind is Kind.REPLY:
            self.address = f"{tools.link.inbox}.r.{tools.link.number()}"
            self._subjects = [self.address]
        else:
            self._subjects = [tools.names.place(source.address).subject]
            if kind is Kind.TOPIC:
                self._subjects.append(f"{in_partition(tools.names.direct(source), 0).rpartition('.')[0]}.>")
        self._channel = name if kind is not Kind.REPLY and not ("*" in name or "#" in name) else None
        self._subscriptions: list[NatsSubscription] = []
        self._buffer: deque[Received] = deque()
        self._later: list[tuple[float, Received]] = []
        self._live: set[Received] = set()
        self._waiter: asyncio.Future[None] | None = None
        self._delivered = 0
        self._dropped = 0
        self._closed = False

    async def attach(self, client: Client) -> None:
        """Listen on a new connection."""
        del client
        self._subscriptions = [await self._link.subscribe(s, self._on_message, self._queue) for s in self._subjects]

    def detach(self) -> None:
        """The connection is gone; what was received stays."""
        self._subscriptions = []
        self._wake()

    def tick(self) -> None:
        """Hand out again what is due."""
        now = self._tools.clock.monotonic()
        if self._later and self._later[0][0] <= now:
            while self._later and self._later[0][0] <= now:
                self._buffer.append(self._later.pop(0)[1])
            self._wake()
        if self._dropped:
            _log.error(
                "%s: %d messages came faster than they are consumed and were dropped", self._source, self._dropped
            )
            self._dropped = 0

    def _on_message(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        if self.address:
            self.push(_Answer.of(headers, body) or Received(body, decode_block(headers), 1))
            return
        own = decode_block(headers)
        if reply and self._source.address.kind is Kind.REQUEST and REPLY_TO not in own:
            own[REPLY_TO] = reply.decode()  # a plain client's request
        channel = self._channel if self._channel is not None else self._tools.names.channel(subject.decode())
        self.push(_Pushed(self._link.use(), subject, reply, headers, body, own, channel))

    def answer(self, request_id: str, message: Msg) -> None:
        """Take the answer of a plain client to one of our requests."""
        headers = {CORRELATION_ID: request_id, **decode_headers(message.headers)}
        self.push(Received(message.data, headers, 1, raw=message))

    def push(self, received: Received) -> None:
        """Hand a message over, or buffer it."""
        if self.address:
            self._tools.confirms.answered(received.correlation or received.headers.get(CORRELATION_ID, ""))
        received.time = self._tools.clock.now()
        if self.deliver is not None and not self._buffer and self.deliver(received):
            if not self.address:
                self._live.add(received)
                self._delivered += 1
        elif len(self._buffer) >= _MOST:
            self._dropped += 1
        else:
            self._buffer.append(received)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """See `Subscription.receive`."""
        self._delivered = 0
        if not self._buffer:
            await self._wait(wait)
        limit -= self._delivered  # meanwhile
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        self._live.update(taken)
        return taken

    async def _wait(self, wait: float) -> None:
        self._check()
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        alarm = loop.call_later(wait, self._wake)
        try:
            await self._waiter
        finally:
            alarm.cancel()
            self._waiter = None
        if not self._buffer:
            self._check()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"the subscription to {self._source} is closed")
        self._link.use()

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """See `Subscription.settle`."""
        results: list[SettleError | None] = [None] * len(outcomes)
        for index, outcome in enumerate(outcomes):
            received = outcome.received
            if received not in self._live:
                results[index] = LeaseLost(f"the message of {self._source} was settled before")
                continue
            if isinstance(outcome, DeadLetter):
                results[index] = await self._bury(outcome)
            if results[index] is None:
                self._live.discard(received)
                if isinstance(outcome, Nack):
                    self._return(outcome)
        return results

    def _return(self, nack: Nack) -> None:
        if nack.counted:
            nack.received.deliveries += 1
        if not nack.delay:
            self._buffer.append(nack.received)
            self._wake()
            return
        self._later.append((self._tools.clock.monotonic() + nack.delay, nack.received))
        self._later.sort(key=lambda due: due[0])

    async def _bury(self, grave: DeadLetter) -> SettleError | None:
        try:
            await self._tools.provisioner.ensure_dead()
        except MsgbusError as exc:
            return SettleError(f"the dead letter was not stored: {exc}")
        (error,) = await self._answers.bury([grave])
        return error

    async def aclose(self) -> None:
        """See `Subscription.aclose`."""
        if self._closed:
            return
        self._closed = True
        self._link.leave(self)
        self._wake()
        try:
            for subscription in self._subscriptions:
                await self._link.drain(subscription)
            await self._pass_on()
        except (BrokerUnavailable, errors.Error) as exc:
            _log.info("%s: messages in hand were lost with the connection: %s", self._source, exc)
        self._buffer.clear()
        self._later.clear()

    async def _pass_on(self) -> None:
        """Give unserved requests to another responder. Topics have no such place: other groups would get them, too."""
        if self._source.address.kind is not Kind.REQUEST:
            return
        frames = []
        for received in [*self._live, *(r for _, r in self._later), *self._buffer]:
            reply = received.reply if isinstance(received, _Pushed) else ""
            frames.append(frame(self._subjects[0], received.body, reply, encode_headers(received.headers)))
        self._link.use().write(*frames)
