"""One consumer: leases messages, waits for them, settles them."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from msgbus.adapter import Ack, Clock, Nack, Outcome, Received, SubscribeOptions, Subscription
from msgbus.errors import ClosedError, LeaseLost, SettleError
from msgbus_sqlite import _lanes as lanes
from msgbus_sqlite import _messages as messages
from msgbus_sqlite._messages import Receipt, Row
from msgbus_sqlite._topology import Place, drop_reply, keep_reply
from msgbus_sqlite._writer import Transaction, Writer

__all__ = ["SQLiteSubscription", "next_moment"]

T = TypeVar("T")

_NEVER = float("inf")
_KEEP_REPLY = 120.0
"""Seconds between two signs of life of a reply queue; a fraction of the life that `_topology` gives it."""

Found = tuple[list[tuple[Row, Receipt]], float]
"""Leased messages, and, if there are none, when to look again."""


class SQLiteSubscription(Subscription):
    """A consumer of one place.

    Args:
        writer: Runs the transactions.
        place: What is consumed.
        dead: Whether that is the place's dead letters.
        options: How.
        clock: The bus's.
        reply: The reply queue's name if it is one, else empty.
        on_close: Called once when it is closed.
    """

    def __init__(
        self,
        writer: Writer,
        place: Place,
        *,
        dead: bool,
        options: SubscribeOptions,
        clock: Clock,
        reply: str,
        on_close: Callable[[SQLiteSubscription], None],
    ) -> None:
        self.address = reply
        self.place = place.id + dead
        self.waiting = False
        self._keyed = place.keyed and not dead
        self._writer = writer
        self._options = options
        self._clock = clock
        self._on_close = on_close
        self._held: dict[Receipt, None] = {}
        self._arrived: deque[Received] = deque()
        self._leasing: asyncio.Future[Found] | None = None
        self._signal = asyncio.Event()
        self._next_moment = 0.0
        self._keep_at = clock.now() + _KEEP_REPLY
        self._closing: asyncio.Task[None] | None = None

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """Return between 1 and *limit* messages, or none after *wait* seconds."""
        if self.address and self._clock.now() >= self._keep_at:
            await self._keep()
        deadline = self._clock.now() + wait
        self.waiting = True
        try:
            while True:
                self._check_open()
                self._signal.clear()
                until = deadline
                if not self._arrived and (room := self._room(limit)) > 0:
                    await self._lease(room)
                    until = min(deadline, self._next_moment)
                if result := self._take(limit):
                    return result
                now = self._clock.now()
                if now >= deadline:
                    return []
                await self._pause(until - now)
        finally:
            self.waiting = False

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """Settle messages in one transaction."""
        self._check_open()
        together = [*outcomes, *self._behind(outcomes)]
        future = self._writer.submit(lambda tx: _settle(tx, together))
        future.add_done_callback(lambda done: self._settled(done, together))
        return (await asyncio.shield(future))[: len(outcomes)]

    async def extend(self, received: Sequence[Received], seconds: float) -> Sequence[SettleError | None]:
        """Extend leases in one transaction."""
        self._check_open()

        def work(tx: Transaction) -> list[SettleError | None]:
            return [_extend(tx, message.receipt, tx.now + seconds) for message in received]

        return await self._writer.submit(work)

    async def aclose(self) -> None:
        """Give back what is unsettled. Idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    def notice(self, moment: float) -> None:
        """Take note that there is something at *moment* (0: now)."""
        if moment < self._next_moment or moment <= self._clock.now():
            self._signal.set()

    def wake(self) -> None:
        """Look again at once."""
        self._signal.set()

    # -- receiving ----------------------------------------------------------------------------------------------

    async def _lease(self, limit: int) -> None:
        """Lease messages into `_arrived`; a cancelled call leaves them there for the next one."""
        if self._leasing is None:
            token = secrets.randbits(62)
            self._leasing = self._writer.submit(
                lambda tx: _lease(tx, self.place, self._keyed, limit, self._options.lease, token), self._peek
            )
            self._leasing.add_done_callback(self._leased)
        await asyncio.shield(self._leasing)

    def _peek(self, db: sqlite3.Connection, now: float) -> Found | None:
        moment = next_moment(db, self.place, keyed=self._keyed)
        return None if moment <= now else ([], moment)

    def _leased(self, future: asyncio.Future[Found]) -> None:
        self._leasing = None
        if future.exception() is not None:
            return
        found, self._next_moment = future.result()
        for row, receipt in found:
            self._held[receipt] = None
            self._arrived.append(messages.to_received(row, receipt))

    def _take(self, limit: int) -> list[Received]:
        arrived = self._arrived
        if not arrived:
            return []
        now = self._clock.now()
        taken: list[Received] = []
        while arrived and len(taken) < limit:
            received = arrived.popleft()
            if received.receipt.until > now:
                taken.append(received)
            else:  # it waited too long for this call, and is somebody else's by now
                self._held.pop(received.receipt, None)
        return taken

    def _room(self, limit: int) -> int:
        prefetch = self._options.prefetch
        if len(self._held) >= prefetch:
            now = self._clock.now()
            for receipt in [receipt for receipt in self._held if receipt.until <= now]:
                del self._held[receipt]
        return min(limit, prefetch - len(self._held))

    async def _pause(self, seconds: float) -> None:
        """Wait until something happens, at most *seconds*."""
        timer = asyncio.ensure_future(self._clock.sleep(max(0.0, seconds)))
        timer.add_done_callback(self._ring)
        try:
            await self._signal.wait()
        finally:
            timer.remove_done_callback(self._ring)
            timer.cancel()

    def _ring(self, _: object) -> None:
        self._signal.set()

    async def _keep(self) -> None:
        place = await self._writer.submit(lambda tx: keep_reply(tx, self.address))
        self.place = place.id
        self._keep_at = self._clock.now() + _KEEP_REPLY

    # -- settling -----------------------------------------------------------------------------------------------

    def _behind(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Return how to settle what a cancelled `receive` left here, behind a message of its key that goes back."""
        if not self._arrived:
            return []
        keys = {outcome.received.receipt.key for outcome in outcomes if type(outcome) is not Ack}
        keys.discard(None)
        behind = [received for received in self._arrived if received.receipt.key in keys]
        self._arrived = deque(received for received in self._arrived if received.receipt.key not in keys)
        return [Nack(received, counted=False) for received in behind]

    def _settled(self, future: asyncio.Future[list[SettleError | None]], outcomes: Sequence[Outcome]) -> None:
        if future.exception() is not None:
            return
        for outcome, error in zip(outcomes, future.result(), strict=True):
            if error is None or isinstance(error, LeaseLost):
                self._held.pop(outcome.received.receipt, None)
        self._signal.set()  # there is room again

    async def _close(self) -> None:
        self._on_close(self)
        self._signal.set()
        if self._leasing is not None:
            await asyncio.wait([self._leasing])
        self._arrived.clear()
        await self._give_back()

    async def _give_back(self) -> None:
        def work(tx: Transaction) -> None:
            _settle(tx, [Nack(Received(b"", {}, receipt=receipt), counted=False) for receipt in held])
            if self.address:
                drop_reply(tx, self.address)

        held = list(self._held)
        if held or self.address:
            await self._writer.submit(work)
        self._held.clear()

    def _check_open(self) -> None:
        if self._closing is not None:
            raise ClosedError("the subscription is closed")


def next_moment(db: sqlite3.Connection, place: int, *, keyed: bool) -> float:
    """Return when *place* has something: 0 for now, or when the next thing comes due, or infinity."""
    moments = [messages.next_moment(db, place)]
    if keyed:
        moments.append(lanes.next_moment(db, place))
    return min((moment for moment in moments if moment is not None), default=_NEVER)


def _lease(tx: Transaction, place: int, keyed: bool, limit: int, seconds: float, token: int) -> Found:
    until = tx.now + seconds
    found: list[tuple[Row, Receipt]] = []
    if keyed:
        lanes.admit_due(tx, place)
    # By the toss of a coin, the messages with a key come first or those without, so that neither starve.
    for in_lanes in ((True, False) if token & 1 else (False, True)) if keyed else (False,):
        room = limit - len(found)
        if room > 0:
            rows = (lanes if in_lanes else messages).lease(tx, place, room, until, token)
            has_key = in_lanes or place & 1
            found += [(row, Receipt(place, row[3] if has_key else None, row[0], token, until)) for row in rows]
    return found, 0.0 if found else next_moment(tx.db, place, keyed=keyed)


def _settle(tx: Transaction, outcomes: Sequence[Outcome]) -> list[SettleError | None]:
    errors: list[SettleError | None] = [None] * len(outcomes)
    in_lanes: list[messages.Held] = []
    others: list[messages.Held] = []
    for number, outcome in enumerate(outcomes):
        receipt = outcome.received.receipt
        (in_lanes if receipt.in_lane else others).append((number, outcome, receipt))
    if others:
        messages.settle(tx, others, errors)
        for number, outcome, receipt in others:
            if receipt.key is not None and type(outcome) is Ack and errors[number] is None:
                lanes.unpark(tx, receipt.place - 1, receipt.key, receipt.id)
    if in_lanes:
        lanes.settle(tx, in_lanes, errors)
    return errors


def _extend(tx: Transaction, receipt: Receipt, until: float) -> SettleError | None:
    extended = (lanes if receipt.in_lane else messages).extend(tx, receipt, until)
    if not extended:
        return messages.lost(receipt)
    before, receipt.until = receipt.until, until
    tx.undo.append(lambda: setattr(receipt, "until", before))
    return None
