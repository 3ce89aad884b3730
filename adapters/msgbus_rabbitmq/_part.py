"""One queue of a subscription: what has arrived from it and waits to be handed out, and the order of its keys."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from msgbus.adapter import KEY, Ack, Clock, Nack, Outcome, Received
from msgbus.errors import MsgbusError, TopologyError
from msgbus_rabbitmq._consumer import Consumer
from msgbus_rabbitmq._lanes import Lanes, Receipt

__all__ = ["Part"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_DRAIN_TIMEOUT = 2.0
"""Seconds that messages under way get before a queue is passed on; then another try is left to later."""


class Part:
    """One queue, consumed for as long as the subscription lives.

    Args:
        make: Makes the consumer, given what to call with each message, with answers, and when it is lost.
        keyed: Whether to keep order per key.
        clock: For delays.
        offer: Called with a message before which nothing waits; True says that it is taken.
        wake: Called when there is something to take, or the consumer is lost.
        repair: Declares the queue again.

    Attributes:
        active: Whether messages have come since the queue was joined; so it is ours, not another process's.
    """

    def __init__(
        self,
        make: Callable[[Callable[[Received], None], Callable[[Received], bool], Callable[[], None]], Consumer],
        *,
        keyed: bool,
        clock: Clock,
        offer: Callable[[Received], bool],
        wake: Callable[[], None],
        repair: Callable[[], Awaitable[None]],
    ) -> None:
        self.consumer = make(self._on_message, self._on_answer, self._on_lost)
        self.active = False
        self._lanes = Lanes() if keyed else None
        self._clock = clock
        self._offer = offer
        self._wake = wake
        self._repair = repair
        self._ready: deque[Received] = deque()
        self._broken = asyncio.Event()
        self._paused = False
        self._timers: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def can_take(self) -> bool:
        """Whether there is something to hand out."""
        return bool(self._ready) and not self._paused

    def take(self, limit: int) -> list[Received]:
        """Return up to *limit* messages."""
        ready = self._ready
        if self._paused:
            return []
        if len(ready) <= limit:
            got = list(ready)
            ready.clear()
            return got
        return [ready.popleft() for _ in range(limit)]

    # -- arriving -----------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Consume again whenever the consumer is lost."""
        while True:
            await self._broken.wait()
            await self._leave()
            pause = _FIRST_PAUSE
            while not self.consumer.is_open:
                self._broken.clear()
                try:
                    await self._open_repaired()
                except MsgbusError as exc:
                    self.consumer.trouble = str(exc)
                    await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreading load
                    pause = min(pause * 2, _LONGEST_PAUSE)

    async def _open_repaired(self) -> None:
        try:
            await self.consumer.open()
        except TopologyError:
            await self._repair()
            await self.consumer.open()

    async def _leave(self) -> None:
        """Drop all that came: the broker hands it out again."""
        self.active = False
        self._ready.clear()
        if self._lanes is not None:
            self._lanes.forget(self._clock.monotonic())
        await self.consumer.detach()

    async def pass_on(self) -> bool:
        """Leave the queue to the next process in line once nothing of it is under way, and join the line's end.

        Returns:
            Whether it was left.
        """
        self._paused = True
        try:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + _DRAIN_TIMEOUT
            while not self.is_quiet:
                if loop.time() > deadline or not self.consumer.is_open:
                    return False
                await asyncio.sleep(0.02)
            await self._leave()
        finally:
            self._paused = False
            self._wake()
        self._broken.set()  # so that `keep` joins again
        return True

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of the queue is handed out or held for later."""
        return self.consumer.held == len(self._ready) and (self._lanes is None or not self._lanes.is_holding)

    def _on_lost(self) -> None:
        self._broken.set()
        self._wake()

    def _on_message(self, received: Received) -> None:
        self.active = True
        if self._lanes is not None and (key := received.headers.get(KEY)) is not None:
            received.receipt.key = key
            self._hand_out(self._lanes.arrive(received, self._clock.monotonic()))
        elif self._ready or not self._offer(received):
            self._ready.append(received)
            self._wake()

    def _on_answer(self, received: Received) -> bool:
        return not self._ready and self._offer(received)

    def _hand_out(self, messages: list[Received]) -> None:
        if messages:
            self._ready.extend(messages)
            self._wake()

    # -- settling -----------------------------------------------------------------------------------------------

    def ack_all(self, outcomes: Sequence[Outcome]) -> bool:
        """Ack messages that have no key, if nothing else is to be done with any of them; return whether it was."""
        if self._lanes is not None or {*map(type, outcomes)} != {Ack}:
            return False
        return self.consumer.ack_all([outcome.received.receipt for outcome in outcomes])

    def ack(self, receipts: list[Receipt]) -> None:
        """Ack messages that the consumer holds."""
        self.consumer.ack(receipts)
        if self._lanes is not None:
            now = self._clock.monotonic()
            for receipt in receipts:
                if receipt.key is not None:
                    self._hand_out(self._lanes.settled(receipt, now))

    def hold(self, nack: Nack) -> bool:
        """Take a nacked message with a key back until its delay is over; return False if its order does not matter."""
        received, receipt = nack.received, nack.received.receipt
        if self._lanes is None or receipt.key is None:
            return False
        now = self._clock.monotonic()
        if nack.counted:
            received = replace(received, deliveries=max(received.deliveries, 1) + 1)
        due = now + nack.delay
        if nack.delay > 0:
            self._later(self._lanes, receipt.key, nack.delay, due)
        unseen = [message for message in self._ready if message.receipt.key == receipt.key]
        if unseen:
            self._ready = deque(message for message in self._ready if message.receipt.key != receipt.key)
        self._hand_out(self._lanes.hold([received, *unseen], due, now))
        return True

    def _later(self, lanes: Lanes, key: str, delay: float, due: float) -> None:
        """Look at a lane again after *delay* seconds, when it is *due*."""

        async def release() -> None:
            await self._clock.sleep(delay)
            # It is due now, even if the clock that was slept by is a little ahead: nobody would look once more.
            self._hand_out(lanes.release(key, max(due, self._clock.monotonic())))

        task = asyncio.create_task(release())
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def aclose(self) -> None:
        """Stop consuming. Idempotent."""
        timers = list(self._timers)
        for timer in timers:
            timer.cancel()
        if timers:
            await asyncio.wait(timers)
        await self.consumer.aclose()
