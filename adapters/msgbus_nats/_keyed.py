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
from nats.aio.client import Client
from nats.aio.msg import Msg

from msgbus.adapter import KEY, Nack, Outcome, Received, Source, SubscribeOptions
from msgbus.errors import BrokerError, LeaseLost, SettleError
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
_UNWRITTEN = 1.0
"""Seconds after which a server has certainly written down whom it gave a message. nats-server does it ten times a
second under load (`flushLoop` of its file store)."""
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

    # -- on the connection --------------------------------------------------------------------------------------

    async def attach(self, client: Client) -> None:
        """Pull over a new connection, and under new pins.

        The server may still believe in the old connection, and serve the requests that it made: messages go nowhere
        until their leases end. With the same pin, this connection would be given later ones of their keys meanwhile.
        """
        if self._link.restarted:
            for receipt in self._held.values():
                receipt.forgotten = receipt.forgotten or receipt.fresh
        for pull in [pull for pull in self._pulls if pull.pin]:
            pull.pin = ""
            self._link.spawn(super()._return_unasked(self._give_up(pull)))
            self._link.spawn(self._try_to_unpin(pull))
        await super().attach(client)

    def detach(self) -> None:
        """The connection is gone: a server that was killed may have forgotten what it gave us last."""
        since = self._link.round_trips.proven - _UNWRITTEN
        for receipt in self._held.values():
            receipt.doubtful = True
            receipt.fresh = receipt.arrived > since
        super().detach()

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
            for lane in self._lanes.values():
                if lane.pull is pull:
                    lane.away.clear()  # somebody else may have been given them meanwhile
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
            if head.receipt.returned and self._is_busy(key):
                break
            self._buffer.append(lane.parked.pop(0))
            self._wake()
        if not lane.parked and not lane.away:
            self._lanes.pop(key, None)

    def _is_busy(self, key: str) -> bool:
        """Tell whether the core has one of the key's messages: what it gives back next may belong before the others."""
        return any(r.key == key and r.handed and not r.answered for r in self._held.values())

    def _forget(self, receipt: Receipt) -> None:
        super()._forget(receipt)
        if receipt.key is not None and (lane := self._lanes.get(receipt.key)):
            lane.parked = [r for r in lane.parked if r.receipt is not receipt]
            self._advance(receipt.key, lane)

    def _lapsed(self, receipt: Receipt) -> None:
        if self._held.get(receipt.seq) is receipt and receipt.pin == receipt.pull.pin:
            self._expect(receipt, 0.0)
        super()._lapsed(receipt)

    # -- giving back --------------------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """See `Subscription.settle`. What was not tried never leaves this process: nobody else may have it first."""
        results: list[SettleError | None] = [None] * len(outcomes)
        asked, outcomes = outcomes, [self._spare(outcome) for outcome in outcomes]
        rest: list[int] = []
        local: list[Nack] = []
        for index, outcome in enumerate(outcomes):
            receipt: Receipt = outcome.received.receipt
            if isinstance(outcome, Nack) and self._returns(receipt):
                if not outcome.counted:
                    local.append(outcome)
                    continue
                self._expect(receipt, outcome.delay)
            rest.append(index)
        for nack in local:
            self._park(nack.received, nack.delay)
        if rest:
            for index, error in zip(rest, await super().settle([outcomes[i] for i in rest]), strict=True):
                results[index] = error
                if error is None and outcomes[index] is not asked[index]:
                    results[index] = LeaseLost(f"{self._source}: the server was started anew since the message came")
        for nack in local:
            self._advance_key(nack.received.receipt.key)
        return results

    def _spare(self, outcome: Outcome) -> Outcome:
        """Give back what may be somebody else's by now: what is handled twice stays in order, what is gone does not."""
        receipt: Receipt = outcome.received.receipt
        return Nack(outcome.received) if receipt.forgotten and not isinstance(outcome, Nack) else outcome

    def _returns(self, receipt: Receipt) -> bool:
        """Tell whether a message certainly comes again, and to us, when it is given back."""
        keyed = receipt.key is not None and bool(receipt.pull.pin)
        return keyed and not receipt.doubtful and self._is_ours(receipt)

    def _expect(self, receipt: Receipt, delay: float) -> None:
        """Let the key wait for a message that will come again."""
        if receipt.key is None:
            return
        lane = self._lanes.setdefault(receipt.key, _Lane(receipt.pull))
        lane.away[receipt.seq] = self._monotonic() + delay + _OVERDUE
        self._recall(receipt.key, lane)

    def _park(self, received: Received, delay: float) -> None:
        receipt: Receipt = received.receipt
        assert receipt.key is not None
        receipt.handed = False
        receipt.returned = True
        receipt.due = self._monotonic() + delay if delay else 0.0
        lane = self._lanes.setdefault(receipt.key, _Lane(receipt.pull))
        insort(lane.parked, received, key=_position)
        self._recall(receipt.key, lane)

    def _recall(self, key: str, lane: _Lane) -> None:
        """Let what is ready of the key wait again: something comes before it."""
        if ready := [r for r in self._buffer if r.receipt.key == key]:
            lane.parked = sorted([*lane.parked, *ready], key=_position)
            self._buffer = deque(r for r in self._buffer if r.receipt.key != key)

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
            before = self._own(pull)
            try:
                info = await self._tools.provisioner.info(pull.work)
            except BrokerError as exc:
                _log.debug("%s: cannot look at %s: %s", self._source, pull.work.name, exc)
            else:
                # What came or went meanwhile may not be among those that the server counted; nor is what it says is
                # settled: an acknowledgement of the former owner's came late.
                floor = info["ack_floor"]["stream_seq"]
                if info["num_ack_pending"] <= sum(seq > floor for seq in before & self._own(pull)):
                    break
            await self._tools.clock.sleep(_LOOK)
        self._taking.discard(pull)
        for key, lane in list(self._lanes.items()):
            if lane.pull is pull:
                self._advance(key, lane)

    def _own(self, pull: Pull) -> set[int]:
        """Return the positions of the partition's messages that are certainly pending, and ours."""
        now = self._monotonic()
        sure = [r for r in self._held.values() if not (r.answered or r.doubtful) and r.deadline >= now]
        held = {r.seq for r in sure if r.pull is pull}
        return held.union(*(lane.away for lane in self._lanes.values() if lane.pull is pull))

    def unpinned(self, pull: Pull) -> None:
        """Give back what waits here: somebody else has the partition and waits for it."""
        if waiting := self._give_up(pull):
            self._link.spawn(self._return_unasked(waiting))

    def _give_up(self, pull: Pull) -> list[Receipt]:
        """Forget, and return, what waits here."""
        waiting = [r for r in self._held.values() if r.pull is pull and not r.handed]
        for receipt in waiting:
            self._forget(receipt)
        for key in [key for key, lane in self._lanes.items() if lane.pull is pull]:
            del self._lanes[key]
        return waiting

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
        mine = sorted((p for p in self._pulls if p.pin), key=lambda pull: len(self._own(pull)))
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
