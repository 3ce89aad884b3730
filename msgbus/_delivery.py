"""A delivery: one hand-over of a message to a handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from msgbus._message import Message
from msgbus._time import Duration, seconds
from msgbus.adapter import Ack, Nack, Outcome, Received
from msgbus.errors import AlreadySettled, HandlerError, Reject

__all__ = ["Delivery"]

T = TypeVar("T")


class Delivery(Generic[T]):
    """One hand-over of a message to a handler, injected into a parameter annotated with this class.

    A handler settles by returning (done) or raising (retry, or dead-letter). `ack`, `nack` and `reject` do it
    earlier, wait for the broker, and raise if it does not take it; then the handler's end changes nothing any more.

    Attributes:
        payload: The decoded payload.
        attempt: 1 for the first time the message is handled, counted across processes and restarts.
        channel: The name of the channel the message was published to.
        group: The consumer group; empty on queues.
        transaction: The connection or session of `Idempotency(within=)`, in its transaction; else None.
        settled: Whether the handler settled it itself.
        gave_back: Whether it did so with `nack` or `reject`.
    """

    __slots__ = (
        "_controls",
        "_message",
        "_received",
        "attempt",
        "channel",
        "gave_back",
        "group",
        "payload",
        "settled",
        "transaction",
    )

    def __init__(
        self, received: Received, payload: T, *, attempt: int, channel: str, group: str, controls: Controls
    ) -> None:
        self._received = received
        self._message: Message | None = None
        self._controls = controls
        self.payload = payload
        self.attempt = attempt
        self.channel = channel
        self.group = group
        self.transaction: Any = None
        self.settled = False
        self.gave_back = False

    @property
    def message(self) -> Message:
        """The message: its id, headers, key, correlation id and body."""
        if self._message is None:
            received = self._received
            self._message = Message.from_wire(received.body, received.headers, received.key)
        return self._message

    @property
    def raw(self) -> Any:
        """The client library's own message, for what only this broker can do."""
        return self._received.raw

    async def ack(self) -> None:
        """Settle the message as done, now.

        Raises:
            AlreadySettled: It was settled before.
            SettleError: The broker did not take it; the message comes again.
        """
        await self._settle(Ack(self._received))

    async def nack(self, delay: Duration = 0.0) -> None:
        """Give the message back to be delivered again after *delay* seconds. It counts as an attempt.

        Raises:
            AlreadySettled: It was settled before.
            SettleError: The broker did not take it; the message comes again all the same.
        """
        wait = seconds(delay, "nack(delay=)")
        await self._settle(Nack(self._received, wait, headers=self._controls.retry_headers(self._received)))

    async def reject(self, reason: str = "rejected by the handler") -> None:
        """Dead-letter the message, now.

        Raises:
            AlreadySettled: It was settled before.
            SettleError: The broker did not take it; the message comes again.
        """
        await self._settle(self._controls.dead_letter(self._received, Reject(reason)))

    async def extend(self, duration: Duration) -> None:
        """Keep the message's lease for *duration* seconds from now, beyond the automatic heartbeat.

        Raises:
            LeaseLost: It was given to another consumer meanwhile.
        """
        await self._controls.extend(self._received, seconds(duration, "extend(duration)"))

    async def _settle(self, outcome: Outcome) -> None:
        if self.settled:
            raise AlreadySettled(f"the message {self.message.id!r} on {self.channel!r} was settled before")
        if self._controls.settle is None:
            raise HandlerError(
                "a delivery in a batch or a transaction is settled by the handler's end: return, or raise Reject, "
                "RetryAfter or BatchFailed"
            )
        self.settled = True
        self.gave_back = not isinstance(outcome, Ack)
        await self._controls.settle(outcome)

    def __repr__(self) -> str:
        return f"<Delivery {self.message.id!r} of {self.channel!r}, attempt {self.attempt}>"


class Controls:
    """What a delivery can do to its message: given to it by the receiver, so that neither imports the other.

    Args:
        settle: Settles now and waits for the broker; None where deliveries cannot settle themselves.
        extend: Renews a message's lease.
    """

    __slots__ = ("dead_letter", "extend", "retry_headers", "settle")

    dead_letter: Callable[[Received, BaseException], Outcome]
    retry_headers: Callable[[Received], dict[str, str]]

    def __init__(
        self,
        *,
        settle: Callable[[Outcome], Awaitable[None]] | None,
        extend: Callable[[Received, float], Awaitable[None]],
    ) -> None:
        self.settle = settle
        self.extend = extend
