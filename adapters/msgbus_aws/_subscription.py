"""A consumer of one queue: receives by polls, settles in batches of ten, and knows what is still its own.

SQS does not say reliably that a receipt is too old: it may even delete a message that somebody else has by then. So
each message's lease is measured here, from before SQS began to, and what is over is not settled any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

from msgbus.adapter import Ack, DeadLetter, Nack, Outcome, Received, Source, SubscribeOptions, Subscription
from msgbus.errors import ClosedError, LeaseLost, SettleError
from msgbus_aws._errors import Gone, translate
from msgbus_aws._moves import Moves
from msgbus_aws._outbox import Destination
from msgbus_aws._poller import Poller
from msgbus_aws._receipt import Receipt
from msgbus_aws._settle import Settlement, delete, give_back, hide, untried
from msgbus_aws._tools import Tools

__all__ = ["SqsSubscription"]

_log = logging.getLogger("msgbus.aws")
_LONGEST = 12 * 3600.0
"""Seconds that a message can be hidden in all after it was received; SQS ends the lease then, extended or not."""
_STANDSTILL = 1.0
"""Seconds without a tick after which no more is asked for: a process that does not get on keeps nothing from others."""
_UNASKED = 1.0
"""Seconds for which what a poll brought is kept although nobody receives; then others may have it."""


class SqsSubscription(Subscription):
    """One consumer of one queue."""

    def __init__(self, tools: Tools, source: Source, options: SubscribeOptions, queue: Destination) -> None:
        self._tools = tools
        self._link = tools.link
        self._source = source
        self._queue = queue
        self._prefetch = options.prefetch
        self._monotonic = tools.config.clock.monotonic
        self._lease = math.ceil(options.lease)
        # A FIFO queue's copies would lose their place, and nobody counts the receives of dead letters.
        self._keeps_count = not queue.fifo and not source.dead
        self._moves = Moves(tools.outbox, tools.provisioner, tools.config.clock, source, queue)
        self._poller = Poller(
            tools.link,
            tools.claims,
            queue,
            source.address.name,
            self._lease,
            keeps_count=self._keeps_count,
            on_messages=self._arrived,
            on_error=self._failed,
        )
        self._held: dict[str, Received] = {}
        self._handed = 0
        self._buffer: deque[Received] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._asked = self._monotonic()
        self._trouble: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stands_still = False
        self._closed = False

    # -- receiving ----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """See `Subscription.receive`."""
        self._check()
        until = self._monotonic() + wait
        try:
            while True:
                now = self._asked = self._monotonic()
                room = min(limit, self._prefetch - self._handed)
                if room > 0 and self._buffer and (taken := self._take(room)):
                    return taken
                if now >= until:
                    return []
                self._stands_still = now - self._tools.ticked > _STANDSTILL
                if not self._stands_still:
                    self._poller.ask(room - len(self._buffer) - self._poller.outstanding, until - now)
                await self._wait(until - now)
                self._check()
        finally:
            self._asked = self._monotonic()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"the subscription to {self._source} is closed")
        self._link.check_open()
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            error = translate(trouble, "sqs", f"receiving from {self._queue.name}")
            if isinstance(error, Gone):
                self._tools.provisioner.forget(self._queue)
            raise error from trouble

    async def _wait(self, wait: float) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(wait):
                await self._waiter
        except TimeoutError:
            pass
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, room: int) -> list[Received]:
        taken: list[Received] = []
        now = self._monotonic()
        while self._buffer and len(taken) < room:
            received = self._buffer.popleft()
            receipt: Receipt = received.receipt
            if receipt.deadline < now:  # it stood too long: somebody else gets it
                self._forget(receipt)
                continue
            receipt.handed = True
            self._handed += 1
            taken.append(received)
        return taken

    def _arrived(self, messages: Sequence[Received], sent: float) -> None:
        """Take in what a poll brought that was sent at a certain moment."""
        # The lease began at some time between question and answer. The last tick was before the answer came, unless
        # the process stood still between: then both are old, and so is the lease.
        began = max(sent, self._tools.ticked - min(0.2, self._lease / 10))
        early: list[Received] = []
        broken: list[Received] = []
        now = self._tools.config.clock.now()
        for received in messages:
            receipt: Receipt = received.receipt
            receipt.received = began
            receipt.deadline = began + self._lease
            if not self._is_new(receipt):
                continue
            self._held[receipt.id] = received
            if receipt.broken:
                broken.append(received)
            elif receipt.due is not None and receipt.due > now:
                early.append(received)
            else:
                self._buffer.append(received)
        if early:
            self._spawn(self._postpone(early))
        if broken:
            self._spawn(self._bury_broken(broken))
        self._wake()

    def _is_new(self, receipt: Receipt) -> bool:
        """Tell whether a message is not in our hands already: handed out twice, or its lease had ended unnoticed.

        In that case it is ours again, with a new receipt, and whoever handles it goes on. Unless that one is settling
        it: then it was given back, and a poll of our own was faster than the answer that says so.
        """
        held = self._held.get(receipt.id)
        if held is None:
            return True
        older: Receipt = held.receipt
        if older.busy:
            self._forget(older)
            return True
        older.handle, older.received, older.deadline = receipt.handle, receipt.received, receipt.deadline
        return False

    def _failed(self, exc: Exception) -> None:
        self._trouble = exc
        self._wake()

    async def _postpone(self, early: Sequence[Received]) -> None:
        """Send what is not due yet on its next hop."""
        results = await self._moves.postpone([(m, dict(m.headers), m.receipt.due) for m in early])
        await self._conclude(early, results, "postponed")

    async def _bury_broken(self, broken: Sequence[Received]) -> None:
        """Dead-letter what nobody could handle."""
        await self._conclude(broken, await self._moves.broken(broken), "dead-lettered")

    async def _conclude(self, moved: Sequence[Received], results: Sequence[SettleError | None], what: str) -> None:
        done = [m.receipt for m, error in zip(moved, results, strict=True) if error is None]
        errors = [error for error in [*results, *await delete(self._link, self._queue, done)] if error is not None]
        if errors:
            _log.warning("%s: %d messages could not be %s: %s", self._source, len(errors), what, errors[0])
        for received in moved:
            self._forget(received.receipt)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tick(self, now: float) -> None:
        """Give back what nobody asks for (called several times a second)."""
        if self._stands_still:
            self._wake()
        if self._buffer and not self._closed and self._waiter is None and now - self._asked > _UNASKED:
            unasked = [received for received in self._buffer if received.receipt.deadline >= now]
            for received in self._buffer:
                self._forget(received.receipt)
            self._buffer.clear()
            self._spawn(give_back(self._link, self._queue, unasked, keeps_count=self._keeps_count))

    def _forget(self, receipt: Receipt) -> None:
        if self._is_held(receipt):
            del self._held[receipt.id]
            if receipt.handed:
                self._handed -= 1
                self._wake()

    def _is_held(self, receipt: Receipt) -> bool:
        held = self._held.get(receipt.id)
        return held is not None and held.receipt is receipt

    # -- settling -----------------------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """See `Subscription.settle`."""
        self._link.check_open()
        work = Settlement(len(outcomes))
        mine: list[tuple[int, Receipt]] = []
        now = self._monotonic()
        for index, outcome in enumerate(outcomes):
            receipt: Receipt = outcome.received.receipt
            if receipt.busy or self._is_lost(receipt, now):
                work.results[index] = self._lost(receipt)
                continue
            receipt.busy = True
            mine.append((index, receipt))
            self._sort(work, index, outcome, now)
        try:
            await self._settle(work)
        finally:
            for index, receipt in mine:
                receipt.busy = False
                if index in work.done or isinstance(work.results[index], LeaseLost):
                    self._forget(receipt)
        return work.results

    def _sort(self, work: Settlement, index: int, outcome: Outcome, now: float) -> None:
        receipt: Receipt = outcome.received.receipt
        if type(outcome) is Ack:
            work.deletes.append((index, receipt))
        elif type(outcome) is DeadLetter:
            if self._source.dead:  # it is dead already
                work.hides.append((index, receipt, 0))
            else:
                work.graves.append((index, outcome))
        elif type(outcome) is Nack:
            left = _LONGEST - (now - receipt.received) - 1
            tried = outcome.received.deliveries > 1 or outcome.delay > 0
            if self._keeps_count and (outcome.delay > left or (tried and not outcome.counted)):
                work.postponed.append((index, outcome))
            else:
                # On a FIFO queue a copy would lose its place, so the longest that there is has to do.
                work.hides.append((index, receipt, math.ceil(min(outcome.delay, left))))

    async def _settle(self, work: Settlement) -> None:
        await asyncio.gather(self._bury(work), self._put_off(work), self._hide(work), self._delete(work, work.deletes))

    async def _bury(self, work: Settlement) -> None:
        if work.graves:
            graves = [(outcome.received, outcome.headers) for _, outcome in work.graves]
            moved = await self._moves.bury(graves)
            await self._delete(work, work.moved([(i, o.received) for i, o in work.graves], moved))

    async def _put_off(self, work: Settlement) -> None:
        if work.postponed:
            now = self._tools.config.clock.now()
            waiting = [(o.received, _headers(o), now + o.delay) for _, o in work.postponed]
            moved = await self._moves.postpone(waiting)
            await self._delete(work, work.moved([(i, o.received) for i, o in work.postponed], moved))

    async def _delete(self, work: Settlement, chosen: Sequence[tuple[int, Receipt]]) -> None:
        if chosen:
            work.take(chosen, await delete(self._link, self._queue, [receipt for _, receipt in chosen]))

    async def _hide(self, work: Settlement) -> None:
        if work.hides:
            results = await hide(self._link, self._queue, [(receipt, seconds) for _, receipt, seconds in work.hides])
            work.take([(index, receipt) for index, receipt, _ in work.hides], results)

    def _is_lost(self, receipt: Receipt, now: float) -> bool:
        if self._is_held(receipt) and receipt.deadline >= now:
            return False
        self._forget(receipt)
        return True

    def _lost(self, receipt: Receipt) -> LeaseLost:
        return LeaseLost(f"the lease of message {receipt.id} of {self._source} has ended, or it was settled before")

    # -- leases -------------------------------------------------------------------------------------------------

    async def extend(self, received: Sequence[Received], seconds: float) -> Sequence[SettleError | None]:
        """See `Subscription.extend`."""
        self._link.check_open()
        results: list[SettleError | None] = [None] * len(received)
        now = self._monotonic()
        chosen: list[tuple[int, Receipt, int]] = []
        for index, message in enumerate(received):
            receipt: Receipt = message.receipt
            if self._is_lost(receipt, now):
                results[index] = self._lost(receipt)
                continue
            wait = min(math.ceil(seconds), math.floor(receipt.received + _LONGEST - now))
            if now + wait > receipt.deadline:
                chosen.append((index, receipt, wait))
        changed = await hide(self._link, self._queue, [(receipt, wait) for _, receipt, wait in chosen])
        for (index, receipt, wait), error in zip(chosen, changed, strict=True):
            results[index] = error
            if error is None:
                receipt.deadline = now + wait
            elif isinstance(error, LeaseLost):
                self._forget(receipt)
        return results

    # -- end ----------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `Subscription.aclose`."""
        if self._closed:
            return
        self._closed = True
        self._poller.close()
        self._wake()
        await asyncio.sleep(0)  # what a poll has handed over by now is in the buffer after this
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=self._link.options.timeout)
        now = self._monotonic()
        mine = [m for m in self._held.values() if m.receipt.deadline >= now and not m.receipt.busy]
        self._held.clear()
        self._buffer.clear()
        try:
            await give_back(self._link, self._queue, mine, keeps_count=self._keeps_count)
        finally:
            self._tools.closed(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._source}, {len(self._held)} held>"


def _headers(nack: Nack) -> dict[str, str]:
    """Return the headers of the copy that is to be handled later."""
    return (nack.headers or dict(nack.received.headers)) if nack.counted else untried(nack.received)
