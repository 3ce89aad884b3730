"""One consumer on one source: handing out, settling, and messages that move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from msgbus.adapter import (
    ATTEMPTS,
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
from msgbus_rabbitmq._lanes import Receipt
from msgbus_rabbitmq._layout import Layout, Route
from msgbus_rabbitmq._link import Link
from msgbus_rabbitmq._message import CHANNEL
from msgbus_rabbitmq._part import Part
from msgbus_rabbitmq._publisher import Parcel, Publisher
from msgbus_rabbitmq._shares import share_out

__all__ = ["RabbitSubscription"]


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
        self.on_close: Callable[[RabbitSubscription], None] = lambda _: None
        self._link = link
        self._publisher = publisher
        self._layout = layout
        queues = layout.queues(source)
        keyed = source.address.keyed and not source.dead
        share = -(-options.prefetch // len(queues))

        def part(queue: str, *, keyed: bool) -> Part:
            return Part(
                partial(self._consumer, queue, share),
                keyed=keyed,
                clock=config.clock,
                offer=self._offer,
                wake=self._wake,
                repair=partial(repair, source),
            )

        self._parts = {queue: part(queue, keyed=keyed) for queue in queues}
        self._presence = part(layout.members_queue(source), keyed=False) if len(queues) > 1 else None
        self._turn = list(self._parts.values())
        self._waiting: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        if source.address.kind is Kind.REPLY:
            (self.address,) = queues

    def _consumer(
        self,
        queue: str,
        prefetch: int,
        on_message: Callable[[Received], None],
        on_answer: Callable[[Received], bool],
        on_lost: Callable[[], None],
    ) -> Consumer:
        return Consumer(
            self._link,
            self._layout,
            self.source,
            queue,
            prefetch,
            on_message=on_message,
            on_answer=on_answer,
            on_lost=on_lost,
        )

    async def open(self) -> None:
        """Begin to consume, and keep at it until closed.

        Raises:
            BrokerUnavailable: The connection is lost just now.
            TopologyError: There is no such queue.
        """
        await self._link.ready()
        parts = list(self._parts.values())
        jobs = [part.keep() for part in parts]
        if self._presence is not None:
            jobs += [self._presence.keep(), share_out(parts, self._members)]
            parts.append(self._presence)
        try:
            for part in parts:
                await part.consumer.open()
        except BaseException:
            for job in jobs:
                job.close()
            await self.aclose()
            raise
        self._tasks = [asyncio.create_task(job) for job in jobs]

    async def _members(self) -> int:
        """Return how many processes consume this source."""
        _, consumers = await self._link.count(self._layout.members_queue(self.source))
        return consumers

    @property
    def buffered(self) -> int:
        """How many messages have arrived and were not handed out yet."""
        return sum(map(len, self._turn))

    # -- receiving ----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """See `Subscription.receive`."""
        if not self._closed and not any(part.can_take for part in self._turn):
            await self._wait(wait)
        if self._closed:
            raise ClosedError(f"the subscription to {self.source} is closed")
        got: list[Received] = []
        for part in self._turn:
            if len(got) < limit:
                got += part.take(limit - len(got))
        if not got and not any(part.consumer.is_open for part in self._turn):
            raise BrokerUnavailable(self._turn[0].consumer.trouble)
        if len(self._turn) > 1:
            self._turn.append(self._turn.pop(0))  # the next call begins with another part
        return got

    def _offer(self, received: Received) -> bool:
        deliver = self.deliver
        return deliver is not None and deliver(received)

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

    # -- settling -----------------------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """See `Subscription.settle`. AMQP does not confirm acks: None means written to the open connection."""
        results: list[SettleError | None] = [None] * len(outcomes)
        if len(self._turn) == 1 and not self._closed and self._turn[0].ack_all(outcomes):
            return results  # as nearly always
        acks: list[Receipt] = []
        moves: list[tuple[int, Receipt, Parcel]] = []
        for index, outcome in enumerate(outcomes):
            receipt: Receipt = outcome.received.receipt
            if not self._holds(receipt):
                results[index] = LeaseLost("the connection the message came on is lost, or it was settled before")
            elif isinstance(outcome, Ack):
                acks.append(receipt)
            elif (parcel := self._give_back(outcome) if isinstance(outcome, Nack) else self._bury(outcome)) is not None:
                moves.append((index, receipt, parcel))
        self._ack(acks)
        if moves:
            await self._move(moves, results)
        return results

    def _holds(self, receipt: Receipt) -> bool:
        return not self._closed and self._parts[receipt.queue].consumer.holds(receipt)

    def _ack(self, receipts: list[Receipt]) -> None:
        if len(self._turn) == 1:
            self._turn[0].ack(receipts)
            return
        for queue in {receipt.queue for receipt in receipts}:
            self._parts[queue].ack([receipt for receipt in receipts if receipt.queue == queue])

    def _give_back(self, nack: Nack) -> Parcel | None:
        """Return a message in place; or return the parcel that is to replace it."""
        received, receipt = nack.received, nack.received.receipt
        part = self._parts[receipt.queue]
        if part.hold(nack):
            return None
        consumer = part.consumer
        in_place = consumer.counts if nack.counted else self.source.dead or not consumer.nack_counts
        if nack.delay <= 0 and in_place:
            consumer.requeue(receipt, counted=nack.counted)
            return None
        headers = _recounted(received, counted=nack.counted) if nack.headers is None else nack.headers
        route = Route("", receipt.queue, mandatory=True, extra=self._origin(received))
        return Parcel(route.delayed(nack.delay) if nack.delay > 0 else route, headers, received.body)

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
            elif not self._holds(receipt):
                results[index] = LeaseLost("the connection broke while the message was moved; it comes again")
            else:
                done.append(receipt)
        self._ack(done)

    async def aclose(self) -> None:
        """See `Subscription.aclose`."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._wake()
        for part in self._turn if self._presence is None else [*self._turn, self._presence]:
            await part.aclose()
        self.on_close(self)


def _recounted(received: Received, *, counted: bool) -> dict[str, str]:
    """Return the headers of a copy, whose broker's count begins anew: what was counted so far goes along."""
    text = received.headers.get(ATTEMPTS, "")
    before = (
        (int(text) if text.isdecimal() and len(text) < 10 else 0) + max(received.deliveries, 1) - (0 if counted else 1)
    )
    return {**received.headers, ATTEMPTS: str(before)} if before else received.headers
