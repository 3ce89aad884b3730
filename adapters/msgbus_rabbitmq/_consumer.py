"""One channel that consumes one queue: what the broker hands out, what of it is open, and acks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any

from amqp import spec
from amqp.exceptions import ConsumerCancelled

from msgbus.adapter import Kind, Received, Source
from msgbus_rabbitmq._channel import Channel
from msgbus_rabbitmq._errors import reason, translate
from msgbus_rabbitmq._lanes import Receipt
from msgbus_rabbitmq._layout import Layout
from msgbus_rabbitmq._link import Link
from msgbus_rabbitmq._message import CHANNEL, Delivered
from msgbus_rabbitmq._reader import Reader

__all__ = ["Consumer"]

_REPLY_LIFE = 60_000
"""Milliseconds a reply queue outlives its process. Shorter loses replies while its connection is being repaired."""
_RETURN_TIMEOUT = 1.0
"""Seconds that the broker gets to take back what a closed channel held."""
_ANSWERS = 0.01
"""Seconds that answers which were taken wait to be acked, all together. Longer brings more of them again, to be
ignored, after a lost connection; shorter costs the broker and us a packet for each few."""
_TAG = Struct(">Q")
_SETTLE = Struct(">BHIHHQBB")  # frame header, method, delivery tag, bits, frame end


class Consumer:
    """Consumes on a channel; when that is lost, `open` gets another one, and all of the old one's messages are void.

    Args:
        link: The connection.
        layout: The names.
        source: What to consume.
        queue: Its queue, or one of them.
        prefetch: The most messages to hold.
        on_message: Called with each message.
        on_answer: Called with each answer to a request; True says that it is done with.
        on_lost: Called when the channel is lost, or the broker cancels the consumer.

    Attributes:
        trouble: Why there is no channel now.
    """

    def __init__(
        self,
        link: Link,
        layout: Layout,
        source: Source,
        queue: str,
        prefetch: int,
        *,
        on_message: Callable[[Received], None],
        on_answer: Callable[[Received], bool],
        on_lost: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.counts = layout.queue_type(source) == "quorum"
        self.trouble = "not connected yet"
        self._link = link
        self._source = source
        self._address = source.address
        self._one_name = source.address.kind is not Kind.TOPIC
        self._prefetch = prefetch
        self._on_message = on_message
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._channel: Channel | None = None
        self._lost = False
        self._epoch = 0
        self._tag = ""
        self._read = Reader()
        self._held: dict[int, None] = {}
        self._done: list[int] = []  # answers that are yet to be acked, held as long
        self._acking: asyncio.TimerHandle | None = None
        self._returning = 0  # messages that were requeued and have not come back to us

    @property
    def held(self) -> int:
        """How many messages are open."""
        return len(self._held)

    @property
    def is_open(self) -> bool:
        """Whether messages arrive."""
        return self._channel is not None and self._channel.is_open and not self._lost

    def holds(self, receipt: Receipt) -> bool:
        """Whether a message is ours to settle."""
        return receipt.epoch == self._epoch and receipt.tag in self._held and self.is_open

    async def open(self) -> None:
        """Begin to consume on a new channel.

        Raises:
            BrokerUnavailable: There is no connection now.
            TopologyError: There is no such queue.
        """
        self._epoch += 1
        self._lost = False
        epoch = self._epoch
        channel: Channel | None = None
        try:
            channel = self._channel = await (await self._link.ready()).channel()
            is_reply = self._source.address.kind is Kind.REPLY
            channel.on_delivery = partial(self._on_reply if is_reply else self._on_delivery, epoch)
            channel.on_cancel = lambda tag: self._lose(epoch, ConsumerCancelled(f"the broker cancelled {tag!r}"))
            channel.closed.add_done_callback(lambda closed: self._lose(epoch, closed.result()))
            if is_reply:
                await self._declare_reply_queue(channel)
            await channel.call(spec.Basic.Qos, "lBb", 0, self._prefetch, False)
            (self._tag,) = await channel.call(
                spec.Basic.Consume, "BssbbbbF", 0, self.queue, "", False, False, False, False, {}
            )
        except BaseException as exc:
            self._channel = None
            if channel is not None:
                await channel.aclose()
            if isinstance(exc, Exception):
                raise translate(exc, f"cannot consume {self._source}") from exc
            raise

    async def _declare_reply_queue(self, channel: Channel) -> None:
        arguments = {"x-expires": _REPLY_LIFE, "x-queue-type": "classic"}
        await channel.call(spec.Queue.Declare, "BsbbbbbF", 0, self.queue, False, True, False, False, False, arguments)

    async def detach(self) -> None:
        """Give the channel up, and with it all that it holds: the broker hands it out again. Idempotent."""
        channel, self._channel = self._channel, None
        self._epoch += 1
        self._held.clear()
        self._done.clear()
        if self._acking is not None:
            self._acking.cancel()
            self._acking = None
        self._returning = 0
        if channel is not None:
            await channel.aclose()

    async def aclose(self) -> None:
        """Stop for good. Idempotent."""
        channel = self._channel
        if channel is not None and channel.is_open:
            try:
                if self._source.address.kind is Kind.REPLY:
                    await channel.call(spec.Queue.Delete, "Bsbbb", 0, self.queue, False, False, False)
                elif self._source.dead:
                    await self._leave_dead_letters(channel)
            except Exception as exc:  # noqa: BLE001 - the connection is gone, and with it what was to be tidied up
                self.trouble = reason(exc)
        await self.detach()

    async def _leave_dead_letters(self, channel: Channel) -> None:
        """Close the channel and wait for the dead letters to be back: whoever looked at them counts them next.

        A quorum queue takes back what a closed channel held a moment after the close was answered.
        """
        queue = self.queue
        await channel.call(spec.Basic.Cancel, "sb", self._tag, False)
        ready, _ = await self._link.count(queue)  # some of what was requeued may be on its way to us instead
        expected = len(self._held) + max(ready, self._returning)
        await channel.aclose()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _RETURN_TIMEOUT
        while (await self._link.count(queue))[0] < expected and loop.time() < deadline:  # noqa: ASYNC110 - AMQP tells nobody
            await asyncio.sleep(0.005)

    # -- arriving -----------------------------------------------------------------------------------------------

    def _lose(self, epoch: int, why: BaseException) -> None:
        if epoch == self._epoch and self._channel is not None and not self._lost:
            self._lost = True
            self.trouble = f"{self._source}: {reason(why)}"
            self._on_lost()

    def _on_delivery(self, epoch: int, method: bytes, header: bytes, body: bytes) -> None:
        if epoch != self._epoch or self._lost:
            return
        size = method[4]
        (tag,) = _TAG.unpack_from(method, 5 + size)
        headers, own = self._read(header)
        self._held[tag] = None
        receipt = Receipt(epoch, tag, self.queue)
        if self._returning and method[13 + size] & 1:  # redelivered
            self._returning -= 1
        channel = self._address.name if self._one_name else self._published_to(own, method, 14 + size)
        deliveries = self._deliveries(own) if self.counts else 0
        raw = Delivered(method, header, body)
        self._on_message(Received(body, headers, deliveries, channel, receipt=receipt, raw=raw))

    def _on_reply(self, epoch: int, method: bytes, header: bytes, body: bytes) -> None:
        """Offer an answer to who waits for it; nobody looks at where it came from."""
        if epoch != self._epoch or self._lost:
            return
        (tag,) = _TAG.unpack_from(method, 5 + method[4])
        received = Received(body, self._read(header)[0])
        self._held[tag] = None
        if self._on_answer(received):
            self._done.append(tag)
            if self._acking is None:
                self._acking = asyncio.get_running_loop().call_later(_ANSWERS, self._ack_answers)
        else:
            received.receipt = Receipt(epoch, tag, self.queue)
            self._on_message(received)

    def _ack_answers(self) -> None:
        self._acking = None
        done, self._done = self._done, []
        if self.is_open:
            self._ack(done)

    def _deliveries(self, own: dict[str, Any]) -> int:
        count = own.get("x-acquired-count", own.get("x-delivery-count", 0))
        return 1 + count if isinstance(count, int) else 1

    def _published_to(self, own: dict[str, Any], method: bytes, offset: int) -> str:
        if CHANNEL in own:
            return str(own[CHANNEL])
        size = method[offset]
        if not size:  # the default exchange: sent to this very queue
            return self._address.name
        offset += 1 + size
        return method[offset + 1 : offset + 1 + method[offset]].decode()

    # -- settling -----------------------------------------------------------------------------------------------

    def ack_all(self, receipts: list[Receipt]) -> bool:
        """Ack messages if we hold all of them; return whether we do."""
        epoch, tags = self._epoch, [receipt.tag for receipt in receipts]
        if not self.is_open or {receipt.epoch for receipt in receipts} != {epoch}:
            return False
        if len({*tags}) < len(tags) or not self._held.keys() >= {*tags}:
            return False
        self._ack(tags)
        return True

    def ack(self, receipts: list[Receipt]) -> None:
        """Ack messages we hold."""
        self._ack([receipt.tag for receipt in receipts])

    def _ack(self, tags: list[int]) -> None:
        """Ack up to the lowest one still open with one frame, what is beyond it one by one."""
        held = self._held
        for tag in tags:
            del held[tag]
        lowest = next(iter(held), None)
        contiguous = max((tag for tag in tags if lowest is None or tag < lowest), default=0)
        if contiguous:
            self._send(spec.Basic.Ack, contiguous, 1)
        for tag in tags:
            if tag > contiguous:
                self._send(spec.Basic.Ack, tag, 0)

    def requeue(self, receipt: Receipt, *, counted: bool) -> None:
        """Return a message we hold to its queue.

        RabbitMQ 4.3 counts rejected messages and not nacked ones; before, quorum queues count both.
        """
        del self._held[receipt.tag]
        self._returning += 1
        if counted:
            self._send(spec.Basic.Reject, receipt.tag, 1)
        else:
            self._send(spec.Basic.Nack, receipt.tag, 2)

    @property
    def nack_counts(self) -> bool:
        """Whether the broker counts a message that is nacked."""
        assert self._channel is not None
        version = str(self._channel.wire.server.get("version", "")).split(".")[:2]
        return self.counts and not (all(map(str.isdecimal, version)) and [int(n) for n in version] >= [4, 3])

    def _send(self, method: tuple[int, int], tag: int, bits: int) -> None:
        assert self._channel is not None
        self._channel.wire.write(_SETTLE.pack(1, self._channel.number, 13, *method, tag, bits, 0xCE))
