"""One consumer on one source: handing out, settling, and messages that move."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

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
from msgbus_rabbitmq._consumer import Consumer
from msgbus_rabbitmq._lanes import Lanes, Receipt
from msgbus_rabbitmq._layout import Layout, Route
from msgbus_rabbitmq._link import Link
from msgbus_rabbitmq._message import CHANNEL
from msgbus_rabbitmq._publisher import Parcel, Publisher

__all__ = ["RabbitSubscription"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


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
        self._broken = asyncio.Event()
        self._consumer = Consumer(
            link, layout, source, options.prefetch, on_message=self._on_message, on_lost=self._on_lost
        )
        self._lanes = Lanes() if source.address.keyed and not source.dead else None
        self._ready: deque[Received] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._timers: set[asyncio.Task[None]] = set()
        self._closed = False
        self.on_close: Callable[[RabbitSubscription], None] = lambda _: None
        if source.address.kind is Kind.REPLY:
            (self.address,) = self._consumer.queues

    async def open(self) -> None:
        """Begin to consume, and keep at it until closed.

        Raises:
            BrokerUnavailable: The connection is lost just now.
            TopologyError: There is no such queue.
        """
        await self._consumer.open()
        self._keeper = asyncio.create_task(self._keep())

    @property
    def buffered(self) -> int:
        """How many messages have arrived and were not handed out yet."""
        return len(self._ready)

    async def _keep(self) -> None:
        while True:
            await self._broken.wait()
            self._ready.clear()  # the broker hands all of it out again
            if self._lanes is not None:
                self._lanes.forget(self._clock.now())
            await self._consumer.detach()
            pause = _FIRST_PAUSE
            while not self._consumer.is_open:
                self._broken.clear()
                try:
                    await self._link.up()
                    await self._repair(self.source)
                    await self._consumer.open()
                except MsgbusError as exc:
                    self._consumer.trouble = str(exc)
                    await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreading load
                    pause = min(pause * 2, _LONGEST_PAUSE)

    def _on_lost(self) -> None:
        self._broken.set()
        self._wake()

    # -- receiving ----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """See `Subscription.receive`."""
        if not self._ready and not self._closed:
            await self._wait(wait)
        if self._closed:
            raise ClosedError(f"the subscription to {self.source} is closed")
        ready = self._ready
        if not self._consumer.is_open:
            raise BrokerUnavailable(self._consumer.trouble)
        if len(ready) <= limit:
            got = list(ready)
            ready.clear()
            return got
        return [ready.popleft() for _ in range(limit)]

    async def _wait(self, wait: float) -> None:
        """Return when there is something to hand out, the channel is lost, or *wait* seconds are over."""
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

    def _on_message(self, received: Received) -> None:
        if self._lanes is not None and (key := received.headers.get(KEY)) is not None:
            received.receipt.key = key
            self._hand_out(self._lanes.arrive(received, self._clock.now()))
        else:
            self._ready.append(received)
            self._wake()

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
            if not self._consumer.holds(receipt):
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
        self._consumer.ack(receipts)
        if self._lanes is not None:
            now = self._clock.now()
            for receipt in receipts:
                if receipt.key is not None:
                    self._hand_out(self._lanes.settled(receipt, now))

    def _give_back(self, nack: Nack) -> Parcel | None:
        """Return a message in place; or return the parcel that is to replace it."""
        received, receipt = nack.received, nack.received.receipt
        if self._lanes is not None and receipt.key is not None:
            self._give_back_in_order(self._lanes, nack)
            return None
        consumer = self._consumer
        in_place = consumer.counts if nack.counted else self.source.dead or not consumer.nack_counts
        if nack.delay <= 0 and in_place:
            consumer.requeue(receipt, counted=nack.counted)
            return None
        headers = _recounted(received, counted=nack.counted) if nack.headers is None else nack.headers
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
            elif not self._consumer.holds(receipt):
                results[index] = LeaseLost("the connection broke while the message was moved; it comes again")
            else:
                done.append(receipt)
        self._ack(done)

    async def aclose(self) -> None:
        """See `Subscription.aclose`."""
        self._closed = True
        tasks = [task for task in (self._keeper, *self._timers) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._wake()
        await self._consumer.aclose()
        self.on_close(self)


def _recounted(received: Received, *, counted: bool) -> dict[str, str]:
    """Return the headers of a copy, whose broker's count begins anew: what was counted so far goes along."""
    text = received.headers.get(ATTEMPTS, "")
    before = (int(text) if text.isdecimal() else 0) + max(received.deliveries, 1) - (0 if counted else 1)
    return {**received.headers, ATTEMPTS: str(before)} if before else received.headers
