"""Consuming one source: a channel that is opened again whenever it is lost, acks, and messages that move."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from struct import Struct
from typing import Any

from amqp import spec
from amqp.exceptions import ConsumerCancelled

from msgbus.adapter import (
    ATTEMPTS,
    KEY,
    Ack,
    AdapterConfig,
    DeadLetter,
    Kind,
    Nack,
    Outcome,
    Received,
    Source,
    SubscribeOptions,
    Subscription,
)
from msgbus.errors import BrokerUnavailable, ClosedError, LeaseLost, MsgbusError, PublishError, SettleError
from msgbus_rabbitmq._channel import Channel
from msgbus_rabbitmq._errors import reason, translate
from msgbus_rabbitmq._lanes import Lanes, Receipt
from msgbus_rabbitmq._layout import Layout, Route
from msgbus_rabbitmq._link import Link
from msgbus_rabbitmq._message import CHANNEL, Delivered, read_headers
from msgbus_rabbitmq._publisher import Parcel, Publisher

__all__ = ["RabbitSubscription"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_REPLY_LIFE = 60_000
"""Milliseconds a reply queue outlives its process. Shorter loses replies while its connection is being repaired."""
_TAG = Struct(">Q")
_SETTLE = Struct(">BHIHHQBB")  # frame header, method, delivery tag, bits, frame end


class RabbitSubscription(Subscription):
    """One consumer on one source.

    Args:
        link: The connection for consuming.
        publisher: For messages that move: delayed ones and dead letters.
        layout: The names.
        repair: Declares the source again, after its queue was deleted.
        source: What to consume.
        options: How.
        config: The bus's.
    """

    def __init__(
        self,
        link: Link,
        publisher: Publisher,
        layout: Layout,
        repair: Callable[[Source], Awaitable[None]],
        source: Source,
        options: SubscribeOptions,
        config: AdapterConfig,
    ) -> None:
        self.source = source
        self._link = link
        self._publisher = publisher
        self._layout = layout
        self._repair = repair
        self._clock = config.clock
        self._prefetch = options.prefetch
        self._queues = layout.queues(source)
        self._counts = layout.queue_type(source) == "quorum"
        self._lanes = Lanes() if source.address.keyed and not source.dead else None
        self._channel: Channel | None = None
        self._epoch = 0
        self._trouble = "not connected yet"
        self._ready: deque[Received] = deque()
        self._held: dict[int, None] = {}
        self._waiting: asyncio.Future[None] | None = None
        self._broken = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._timers: set[asyncio.Task[None]] = set()
        self._closed = False
        if source.address.kind is Kind.REPLY:
            self.address = self._queues[0]

    # -- connecting ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to consume, and keep at it until closed.

        Raises:
            BrokerUnavailable: The connection is lost just now.
            TopologyError: There is no such queue.
        """
        self._link.require()
        await self._attach()
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            await self._broken.wait()
            await self._detach()
            pause = _FIRST_PAUSE
            while self._channel is None:
                try:
                    await self._link.up()
                    await self._repair(self.source)
                    await self._attach()
                except MsgbusError as exc:
                    self._trouble = str(exc)
                    await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreading load
                    pause = min(pause * 2, _LONGEST_PAUSE)

    async def _attach(self) -> None:
        self._broken.clear()
        self._epoch += 1
        epoch = self._epoch
        channel: Channel | None = None
        try:
            channel = await self._link.require().channel()
            channel.on_delivery = lambda method, header, body: self._on_delivery(epoch, method, header, body)
            channel.on_cancel = lambda tag: self._on_lost(epoch, ConsumerCancelled(f"the broker cancelled {tag}"))
            channel.closed.add_done_callback(lambda closed: self._on_lost(epoch, closed.result()))
            self._channel = channel
            if self.source.address.kind is Kind.REPLY:
                await self._declare_reply_queue(channel)
            share = -(-self._prefetch // len(self._queues))
            await channel.call(spec.Basic.Qos, "lBb", 0, share, False)
            for queue in self._queues:
                await channel.call(spec.Basic.Consume, "BssbbbbF", 0, queue, queue, False, False, False, False, {})
        except BaseException as exc:
            self._channel = None
            if channel is not None:
                await channel.aclose()
            if isinstance(exc, Exception):
                raise translate(exc, f"cannot consume {self.source}") from exc
            raise

    async def _declare_reply_queue(self, channel: Channel) -> None:
        arguments = {"x-expires": _REPLY_LIFE, "x-queue-type": "classic"}
        await channel.call(
            spec.Queue.Declare, "BsbbbbbF", 0, self._queues[0], False, True, False, False, False, arguments
        )

    def _on_lost(self, epoch: int, why: BaseException) -> None:
        if epoch != self._epoch or self._channel is None:
            return
        self._trouble = f"{self.source}: {reason(why)}"
        self._broken.set()
        self._wake()

    async def _detach(self) -> None:
        """Forget everything of the lost channel: the broker hands all of it out again."""
        channel, self._channel = self._channel, None
        self._epoch += 1
        self._ready.clear()
        self._held.clear()
        if self._lanes is not None:
            self._lanes.forget(self._clock.now())
        if channel is not None:
            await channel.aclose()

    # -- receiving ----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """See `Subscription.receive`."""
        if not self._ready:
            await self._wait(wait)
        ready = self._ready
        if len(ready) <= limit:
            got = list(ready)
            ready.clear()
        else:
            got = [ready.popleft() for _ in range(limit)]
        if self._closed:
            raise ClosedError(f"the subscription to {self.source} is closed")
        if not got and (self._channel is None or self._broken.is_set()):
            raise BrokerUnavailable(self._trouble)
        return got

    async def _wait(self, wait: float) -> None:
        """Return when there is something to hand out, the channel is lost, or *wait* seconds are over."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        timer = loop.call_later(wait, self._wake)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _on_delivery(self, epoch: int, method: bytes, header: bytes, body: bytes) -> None:
        if epoch != self._epoch or self._broken.is_set():
            return
        size = method[4]
        queue = method[5 : 5 + size].decode()  # consumer tags are queue names
        (tag,) = _TAG.unpack_from(method, 5 + size)
        headers, own = read_headers(header)
        self._held[tag] = None
        receipt = Receipt(epoch, tag, queue)
        received = Received(
            body,
            headers,
            self._deliveries(own),
            self._published_to(own, method, 14 + size),
            receipt=receipt,
            raw=Delivered(method, header, body),
        )
        if self._lanes is not None and (key := headers.get(KEY)) is not None:
            receipt.key = key
            self._hand_out(self._lanes.arrive(received, self._clock.now()))
        else:
            self._ready.append(received)
            self._wake()

    def _deliveries(self, own: dict[str, Any]) -> int:
        if not self._counts:
            return 0
        count = own.get("x-acquired-count", own.get("x-delivery-count", 0))
        return 1 + count if isinstance(count, int) else 1

    def _published_to(self, own: dict[str, Any], method: bytes, offset: int) -> str:
        address = self.source.address
        if address.kind is not Kind.TOPIC:
            return address.name
        if CHANNEL in own:
            return str(own[CHANNEL])
        size = method[offset]
        if not size:  # the default exchange: sent to this very queue
            return address.name
        offset += 1 + size
        return method[offset + 1 : offset + 1 + method[offset]].decode()

    def _hand_out(self, messages: list[Received]) -> None:
        if messages:
            self._ready.extend(messages)
            self._wake()

    # -- settling -----------------------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """See `Subscription.settle`. AMQP does not confirm acks: None means written to the open connection."""
        results: list[SettleError | None] = [None] * len(outcomes)
        acks: list[Receipt] = []
        moves: list[tuple[int, Receipt, Parcel]] = []
        for index, outcome in enumerate(outcomes):
            receipt: Receipt = outcome.received.receipt
            if receipt.epoch != self._epoch or receipt.tag not in self._held or self._broken.is_set():
                results[index] = LeaseLost("the connection the message came on is lost, or it was settled before")
            elif isinstance(outcome, Ack):
                acks.append(receipt)
            elif (parcel := self._give_back(outcome) if isinstance(outcome, Nack) else self._bury(outcome)) is not None:
                moves.append((index, receipt, parcel))
        self._ack(acks)
        if moves:
            await self._move(moves, results)
        return results

    def _ack(self, receipts: list[Receipt]) -> None:
        """Ack up to the lowest message still held with one frame, what is beyond it one by one."""
        held = self._held
        for receipt in receipts:
            del held[receipt.tag]
        tags = [receipt.tag for receipt in receipts]
        lowest = next(iter(held), None)
        contiguous = max((tag for tag in tags if lowest is None or tag < lowest), default=0)
        if contiguous:
            self._send(spec.Basic.Ack, contiguous, 1)
        for tag in tags:
            if tag > contiguous:
                self._send(spec.Basic.Ack, tag, 0)
        if self._lanes is not None:
            now = self._clock.now()
            for receipt in receipts:
                if receipt.key is not None:
                    self._hand_out(self._lanes.settled(receipt, now))

    def _send(self, method: tuple[int, int], tag: int, bits: int) -> None:
        assert self._channel is not None
        self._channel.wire.write(_SETTLE.pack(1, self._channel.number, 13, *method, tag, bits, 0xCE))

    def _give_back(self, nack: Nack) -> Parcel | None:
        """Return a message in place; or return the parcel that is to replace it."""
        received, receipt = nack.received, nack.received.receipt
        if self._lanes is not None and receipt.key is not None:
            self._give_back_in_order(self._lanes, nack)
            return None
        if nack.delay <= 0 and (self._counts if nack.counted else not self._nack_counts):
            del self._held[receipt.tag]
            # RabbitMQ 4.3 counts rejected messages and not nacked ones; before, it counts both.
            if nack.counted:
                self._send(spec.Basic.Reject, receipt.tag, 1)
            else:
                self._send(spec.Basic.Nack, receipt.tag, 2)
            return None
        headers = nack.headers
        if headers is None:
            headers = _recounted(received, counted=nack.counted)
        route = Route("", receipt.queue, mandatory=True, extra=self._origin(received))
        return Parcel(route.delayed(nack.delay) if nack.delay > 0 else route, headers, received.body)

    def _give_back_in_order(self, lanes: Lanes, nack: Nack) -> None:
        received, receipt = nack.received, nack.received.receipt
        now = self._clock.now()
        if nack.counted:
            received = replace(received, deliveries=max(received.deliveries, 1) + 1)
        if nack.delay > 0:
            self._later(receipt.key, nack.delay)
        unseen = [message for message in self._ready if message.receipt.key == receipt.key]
        if unseen:
            self._ready = deque(message for message in self._ready if message.receipt.key != receipt.key)
        self._hand_out(lanes.hold([received, *unseen], now + nack.delay, now))

    def _later(self, key: str, delay: float) -> None:
        """Look at a lane again after *delay* seconds."""
        task = asyncio.create_task(self._release(key, delay))
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _release(self, key: str, delay: float) -> None:
        await self._clock.sleep(delay)
        if self._lanes is not None:
            self._hand_out(self._lanes.release(key, self._clock.now()))

    def _bury(self, outcome: DeadLetter) -> Parcel:
        received = outcome.received
        route = Route("", self._layout.dead_queue(self.source), mandatory=True, extra=self._origin(received))
        return Parcel(route, outcome.headers, received.body)

    def _origin(self, received: Received) -> dict[str, str]:
        return {CHANNEL: received.channel} if self.source.address.kind is Kind.TOPIC else {}

    @property
    def _nack_counts(self) -> bool:
        """Whether the broker counts a message that is nacked: quorum queues do, before RabbitMQ 4.3."""
        assert self._channel is not None
        version = str(self._channel.wire.server.get("version", "")).split(".")[:2]
        return self._counts and not (all(map(str.isdecimal, version)) and [int(n) for n in version] >= [4, 3])

    async def _move(self, moves: list[tuple[int, Receipt, Parcel]], results: list[SettleError | None]) -> None:
        """Publish copies; ack the originals whose copy is confirmed, keep the others for another try."""
        errors: Sequence[PublishError | MsgbusError | None]
        try:
            errors = await self._publisher.send([parcel for _, _, parcel in moves])
        except MsgbusError as exc:
            errors = [exc] * len(moves)
        done: list[Receipt] = []
        for (index, receipt, _), error in zip(moves, errors, strict=True):
            if error is not None:
                results[index] = SettleError(f"its copy is not confirmed: {error}")
                results[index].__cause__ = error  # type: ignore[union-attr]
            elif receipt.epoch != self._epoch or receipt.tag not in self._held:
                results[index] = LeaseLost("the connection broke while the message was moved; it comes again")
            else:
                done.append(receipt)
        self._ack(done)

    # -- closing ------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `Subscription.aclose`."""
        self._closed = True
        tasks = [task for task in (self._keeper, *self._timers) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if (channel := self._channel) is not None and channel.is_open and self.source.address.kind is Kind.REPLY:
            channel.send(spec.Queue.Delete, "Bsbbb", 0, self._queues[0], False, False, True)
        await self._detach()
        self._wake()


def _recounted(received: Received, *, counted: bool) -> dict[str, str]:
    """Return the headers of a copy, whose broker's count begins anew: what was counted so far goes along."""
    text = received.headers.get(ATTEMPTS, "")
    before = (int(text) if text.isdecimal() else 0) + max(received.deliveries, 1) - (0 if counted else 1)
    return {**received.headers, ATTEMPTS: str(before)} if before else received.headers
