"""Consuming a keyed source: messages of one key in order, across all processes.

The stream is partitioned by key, and each partition's consumer serves one client at a time (it is *pinned*). That
client gets the partition's messages in order; what it hands back it waits for before it hands out the key's next one.
The consumer's ``max_ack_pending`` bounds what is unsettled, so that a message given back always finds room.

When a partition changes hands, some of its messages may still be in the hands of the one before. They end there, or
come to the new owner when they are given back or their lease ends; until then the new owner holds its messages back.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections import deque
from collections.abc import Sequence

from nats import errors
from nats.aio.msg import Msg

from msgbus.adapter import KEY, Nack, Outcome, Received, Source, SubscribeOptions
from msgbus.errors import BrokerError, SettleError
from msgbus_nats._answers import Tools
from msgbus_nats._names import Work
from msgbus_nats._pull import Pull
from msgbus_nats._receipt import Receipt
from msgbus_nats._subscription import StreamSubscription

__all__ = ["KeyedSubscription"]

_log = logging.getLogger("msgbus.nats")

_OPEN = 2.0
"""Seconds a request for messages stays open at most. It must be well below the time after which a partition's silent
owner loses it, and what it brings to a consumer that is full meanwhile is kept from others."""
_LOOK = 0.1
"""Seconds between two looks at whether a partition's former owner is done. Each is a request to the server."""
_BALANCE = 8
"""Ticks between two looks at whether others would have a fair share of the partitions."""
_REST = 2.0
"""Seconds in which a released partition is not asked for again, so that somebody else gets it."""
_OVERDUE = 5.0
"""Seconds after which a message that was given back and has not come again is looked for."""


class _Lane:
    """One key's messages that wait here, and the positions of those that will come again."""

    __slots__ = ("away", "parked", "pull")

    def __init__(self, pull: Pull) -> None:
        self.pull = pull
        self.parked: list[Received] = []
        self.away: dict[int, float] = {}


class KeyedSubscription(StreamSubscription):
    """One consumer of a keyed source.

    Args:
        tools: The adapter's.
        source: What is consumed.
        options: How.
        works: The durable consumers, one per partition.
    """

    def __init__(self, tools: Tools, source: Source, options: SubscribeOptions, works: Sequence[Work]) -> None:
        super().__init__(tools, source, options, works)
        self._lanes: dict[str, _Lane] = {}
        self._taking: set[Pull] = set()
        self._resting: dict[Pull, float] = {}

    # -- from the pulls -----------------------------------------------------------------------------------------

    def demand(self, pull: Pull) -> tuple[int, float]:
        """Return for how many more messages to ask: the server's ``max_ack_pending`` is the bound."""
        if not self._limit or pull in self._resting or pull.outstanding:
            return 0, 0.0
        return 2 * self._share, min(self._until - self._monotonic(), _OPEN)

    def accept(self, pull: Pull, message: Msg) -> None:
        """Take in a message; the first one after a change of hands begins the takeover."""
        pin = (message.headers or {}).get("Nats-Pin-Id", "")
        if pin != pull.pin:
            pull.pin = pin
            self._take_over(pull)
        super().accept(pull, message)
        if self._is_too_much(pull):
            self._link.spawn(self._try_to_release(pull))

    def _is_too_much(self, pull: Pull) -> bool:
        """Tell whether we are full and got a partition that we have no stake in: others can serve it."""
        if self._limit or pull in self._resting or self._handed(self._monotonic()) < self._options.prefetch:
            return False
        return not any(r.pull is pull and r.handed for r in self._held.values())

    def _arrived(self, receipt: Receipt, received: Received) -> None:
        receipt.key = received.headers.get(KEY)
        if receipt.key is None:
            super()._arrived(receipt, received)
            return
        lane = self._lanes.setdefault(receipt.key, _Lane(receipt.pull))
        lane.pull = receipt.pull
        lane.away.pop(receipt.seq, None)
        insort(lane.parked, received, key=_position)
        self._advance(receipt.key, lane)

    def _advance(self, key: str, lane: _Lane) -> None:
        """Make ready what nothing has to come before."""
        now = self._monotonic()
        first_away = min(lane.away, default=None)
        while lane.parked and lane.pull not in self._taking:
            head = lane.parked[0]
            if (first_away is not None and first_away < head.receipt.seq) or head.receipt.due > now:
                break
            self._buffer.append(lane.parked.pop(0))
            self._wake()
        if not lane.parked and not lane.away:
            self._lanes.pop(key, None)

    def _forget(self, receipt: Receipt) -> None:
        super()._forget(receipt)
        if receipt.key is not None and (lane := self._lanes.get(receipt.key)):
            lane.parked = [r for r in lane.parked if r.receipt is not receipt]

    def _lapsed(self, receipt: Receipt) -> None:
        if self._held.get(receipt.seq) is receipt and receipt.pin == receipt.pull.pin:
            self._expect(receipt, 0.0)
        super()._lapsed(receipt)

    # -- giving back --------------------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """See `Subscription.settle`. What was not tried never leaves this process: nobody else may have it first."""
        results: list[SettleError | None] = [None] * len(outcomes)
        rest: list[int] = []
        local: list[Nack] = []
        for index, outcome in enumerate(outcomes):
            receipt: Receipt = outcome.received.receipt
            if isinstance(outcome, Nack) and receipt.key is not None and not self._is_lost(receipt):
                if not outcome.counted and receipt.pull.pin:
                    local.append(outcome)
                    continue
                if receipt.pull.pin:
                    self._expect(receipt, outcome.delay)
            rest.append(index)
        for nack in local:
            self._park(nack.received, nack.delay)
        if rest:
            for index, error in zip(rest, await super().settle([outcomes[i] for i in rest]), strict=True):
                results[index] = error
        for nack in local:
            self._advance_key(nack.received.receipt.key)
        return results

    def _expect(self, receipt: Receipt, delay: float) -> None:
        """Let the key wait for a message that will come again."""
        if receipt.key is None:
            return
        lane = self._lanes.setdefault(receipt.key, _Lane(receipt.pull))
        lane.away[receipt.seq] = self._monotonic() + delay + _OVERDUE
        if any(r.receipt.key == receipt.key for r in self._buffer):
            for received in [r for r in self._buffer if r.receipt.key == receipt.key]:
                insort(lane.parked, received, key=_position)
            self._buffer = deque(r for r in self._buffer if r.receipt.key != receipt.key)

    def _park(self, received: Received, delay: float) -> None:
        receipt: Receipt = received.receipt
        assert receipt.key is not None
        receipt.handed = False
        receipt.due = self._monotonic() + delay if delay else 0.0
        lane = self._lanes.setdefault(receipt.key, _Lane(receipt.pull))
        insort(lane.parked, received, key=_position)

    def _advance_key(self, key: str | None) -> None:
        if key is not None and (lane := self._lanes.get(key)):
            self._advance(key, lane)

    # -- partitions ---------------------------------------------------------------------------------------------

    def _take_over(self, pull: Pull) -> None:
        if pull not in self._taking:
            self._taking.add(pull)
            self._link.spawn(self._await_predecessor(pull))

    async def _await_predecessor(self, pull: Pull) -> None:
        """Hold the partition's messages back until nobody else has one that is older."""
        while not self._closed and pull.pin:
            try:
                info = await self._tools.provisioner.info(pull.work)
            except BrokerError as exc:
                _log.debug("%s: cannot look at %s: %s", self._source, pull.work.name, exc)
            else:
                if info["num_ack_pending"] <= self._own(pull):
                    break
            await self._tools.clock.sleep(_LOOK)
        self._taking.discard(pull)
        for key, lane in list(self._lanes.items()):
            if lane.pull is pull:
                self._advance(key, lane)

    def _own(self, pull: Pull) -> int:
        """Return how many of the partition's pending messages are certainly ours."""
        held = sum(r.pull is pull and not r.answered for r in self._held.values())
        return held + sum(len(lane.away) for lane in self._lanes.values() if lane.pull is pull)

    def unpinned(self, pull: Pull) -> None:
        """Give back what waits here: somebody else has the partition and waits for it."""
        waiting = [r for r in self._held.values() if r.pull is pull and not r.handed]
        for receipt in waiting:
            self._forget(receipt)
        for key in [key for key, lane in self._lanes.items() if lane.pull is pull]:
            del self._lanes[key]
        if waiting:
            self._link.spawn(self._return_unasked(waiting))

    async def _return_unasked(self, receipts: list[Receipt]) -> None:
        await super()._return_unasked(receipts)
        for pull in {receipt.pull for receipt in receipts}:
            if pull.pin:
                await self._try_to_release(pull)

    def tick(self) -> None:
        """Look after what is due, what is overdue, and whose the partitions are."""
        super().tick()
        now = self._monotonic()
        for pull in {r.pull for r in self._held.values() if r.handed and r.deadline < now}:
            if pull.pin and pull not in self._resting:  # nobody here keeps its messages: others shall get them
                self._link.spawn(self._try_to_release(pull))
        for key, lane in list(self._lanes.items()):
            if lane.away and min(lane.away.values()) < now and self._link.client is not None:
                lane.away = {seq: due for seq, due in lane.away.items() if due >= now}
                self._take_over(lane.pull)  # find out whether anything is still on its way
            self._advance(key, lane)
        for pull in [p for p, until in self._resting.items() if until < now]:
            del self._resting[pull]
            if self._link.client is not None:
                self._link.spawn(pull.start())
        if self._ticks % _BALANCE == 0:
            self._link.spawn(self._balance())

    async def _balance(self) -> None:
        """Release partitions beyond our share while others wait for some."""
        mine = sorted((p for p in self._pulls if p.pin), key=self._own)
        if len(mine) < 2 or self._closed:
            return
        try:
            # Each member keeps one request open at each partition, so those that wait are the members.
            members = (await self._tools.provisioner.info(mine[0].work)).get("num_waiting", 1)
            share = -(-len(self._pulls) // max(1, members))
        except BrokerError as exc:
            _log.debug("%s: cannot see who shares it: %s", self._source, exc)
            return
        for pull in mine[: len(mine) - share]:
            await self._try_to_release(pull)

    async def _try_to_release(self, pull: Pull) -> None:
        self._resting[pull] = self._monotonic() + _REST
        try:
            await pull.aclose()
            pull.pin = ""
            self.unpinned(pull)
        except (BrokerError, errors.Error) as exc:
            _log.debug("%s: %s cannot be left: %s", self._source, pull.work.name, exc)
        await self._try_to_unpin(pull)

    async def _try_to_unpin(self, pull: Pull) -> None:
        try:
            await self._tools.provisioner.unpin(pull.work)
        except (BrokerError, errors.Error) as exc:
            _log.info("%s: %s goes to others a little later: %s", self._source, pull.work.name, exc)

    async def aclose(self) -> None:
        """See `Subscription.aclose`; the partitions go to others at once."""
        if self._closed:
            return
        await super().aclose()
        for pull in self._pulls:
            if pull.pin:
                await self._try_to_unpin(pull)


def _position(received: Received) -> int:
    seq: int = received.receipt.seq
    return seq
