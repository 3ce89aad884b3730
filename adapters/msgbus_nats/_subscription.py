"""Consuming a stream through its durable consumer.

A message is leased for the consumer's ``ack_wait``. The server takes any acknowledgement of a message that is
pending, even one from a consumer that lost it long ago; so a lease is watched here, from the last moment at which the
server certainly had not sent the message, and what comes too late is refused before it is sent. When a message is read
tells nothing: a connection that stood still may bring what has been given to somebody else meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from msgbus.adapter import DeadLetter, Outcome, Received, Source, SubscribeOptions, Subscription
from msgbus.errors import BrokerError, BrokerUnavailable, ClosedError, LeaseLost, MsgbusError, SettleError
from msgbus_nats._answers import ACK, NAK, PROGRESS, Answers, NotWritten, Tools, answer_to
from msgbus_nats._client import frame
from msgbus_nats._errors import translate
from msgbus_nats._headers import decode_headers
from msgbus_nats._names import Work
from msgbus_nats._pull import Pull
from msgbus_nats._receipt import Receipt

__all__ = ["StreamSubscription"]

_log = logging.getLogger("msgbus.nats")

_OPEN = 5.0
"""Seconds a request for messages stays open at most. What it brings after nobody waits any more has to wait here."""
_POLL = 0.05
"""Seconds a call to `receive` takes at least if there is nothing: a round trip to the server must fit in."""
_CHECK_FLOOR = 120
"""Ticks between two looks at how far the consumer is: where a deleted one is made to go on from."""


class StreamSubscription(Subscription):
    """One consumer of a queue, a topic's group, or dead letters.

    Args:
        tools: The adapter's.
        source: What is consumed.
        options: How.
        works: The durable consumers that serve it.
    """

    def __init__(self, tools: Tools, source: Source, options: SubscribeOptions, works: Sequence[Work]) -> None:
        self._tools = tools
        self._link = tools.link
        self._round_trips = tools.link.round_trips
        self._monotonic = tools.clock.monotonic
        self._source = source
        self._answers = Answers(tools, source)
        self._options = options
        self._ack_wait = options.lease
        self._pulls = [Pull(tools.link, work, self, tools.clock.monotonic) for work in works]
        address = source.address
        one_channel = not source.dead and not ("*" in address.name or "#" in address.name)
        self._channel = address.name if one_channel else None
        self._held: dict[int, Receipt] = {}
        self._buffer: deque[Received] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._trouble: str = ""
        self._mending: set[Pull] = set()
        self._limit = 0
        self._asked = 0.0
        self._until = 0.0
        self._closed = False
        self._ticks = 0

    # -- on the connection --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Fit the consumers and join the connection."""
        for pull in self._pulls:
            self._ack_wait = await self._tools.provisioner.fit(pull.work, self._options.lease, self._share)
        await self._link.join(self)

    async def attach(self, client: Client) -> None:
        """Pull over a new connection."""
        del client
        self._trouble = ""
        for pull in self._pulls:
            await pull.start()

    def detach(self) -> None:
        """The connection is gone. Leases go on, and can be settled over the next one."""
        for pull in self._pulls:
            pull.stop()
        self._wake()

    def tick(self) -> None:
        """Look after pulls, and renew the leases of messages nobody has taken yet."""
        self._link.prove(self._ack_wait / 8)  # as much of a lease may be lost to not knowing when it began
        for pull in self._pulls:
            if pull not in self._mending:
                pull.tick()
        now = self._monotonic()
        for receipt in [r for r in self._held.values() if not r.handed and r.deadline < now]:
            self._lapsed(receipt)
        waiting = [r for r in self._held.values() if not r.handed]
        if waiting and not self._limit and now - self._asked > self._options.lease:
            for receipt in waiting:
                self._forget(receipt)
            self._link.spawn(self._return_unasked(waiting))
        soon = now + self._ack_wait / 2
        due = [r for r in self._held.values() if now <= r.deadline < soon and (not r.handed or r.deadline < r.until)]
        if due:
            self._link.spawn(self._renew_in_time(due))
        self._ticks += 1
        if self._ticks % _CHECK_FLOOR == 0:
            self._link.spawn(self._look())

    async def _look(self) -> None:
        try:
            for pull in self._pulls:
                await self._tools.provisioner.info(pull.work)
        except BrokerError as exc:
            _log.debug("cannot look at %s: %s", self._source, exc)

    @property
    def _share(self) -> int:
        """The most unsettled messages per partition (for consumers that have several)."""
        return max(1, self._options.prefetch // len(self._pulls))

    # -- from the pulls -----------------------------------------------------------------------------------------

    def demand(self, pull: Pull) -> tuple[int, float]:
        """Return for how many more messages to ask: what a waiting `receive` can still take."""
        outstanding = pull.outstanding
        missing = self._limit - len(self._buffer) - outstanding
        if outstanding and missing < self._limit / 2:  # most of it is on its way: one request for many messages
            return 0, 0.0
        return missing, min(self._until - self._monotonic(), _OPEN)

    def accept(self, pull: Pull, message: Msg) -> None:
        """Take in a message."""
        words = message.reply.split(".")
        at = 4 if len(words) < 11 else 6
        seq = int(words[at + 1])
        deadline = self._end_of_lease(self._round_trips.proven)
        older = self._held.get(seq)
        if older is not None and not older.answered:  # its lease had ended, and nobody else has got it: go on with it
            older.come_again(message.reply, self._monotonic(), deadline, pull)
            return
        receipt = Receipt(seq, message.reply, self._monotonic(), deadline, pull, words[at + 3])
        headers = decode_headers(message.headers)
        received = Received(
            message.data,
            headers,
            int(words[at]),
            self._channel or self._tools.names.channel(message.subject),
            None,
            int(words[at + 3]) / 1e9,
            seq,
            receipt,
            message,
        )
        self._held[seq] = receipt
        self._arrived(receipt, received)

    def _arrived(self, receipt: Receipt, received: Received) -> None:
        del receipt
        self._buffer.append(received)
        self._wake()

    def unpinned(self, pull: Pull) -> None:
        """Nothing to do: only consumers with partitions are pinned."""

    def gone(self, pull: Pull, why: str) -> None:
        """Look what became of the consumer, and mend it."""
        if pull not in self._mending and not self._closed:
            self._mending.add(pull)
            self._link.spawn(self._mend(pull, why))

    async def _mend(self, pull: Pull, why: str) -> None:
        _log.info("%s: %s; looking after consumer %s", self._source, why, pull.work.name)
        try:
            wait = 0.1
            while not self._closed and self._link.client is not None:
                try:
                    await self._tools.provisioner.ensure(self._source, pull.work)
                    self._ack_wait = await self._tools.provisioner.fit(pull.work, self._options.lease, self._share)
                    await pull.start()
                except (MsgbusError, errors.Error) as exc:
                    if not self._trouble:
                        _log.warning("%s: consumer %s cannot be mended yet: %s", self._source, pull.work.name, exc)
                    self._trouble = str(exc)
                    self._wake()
                    await self._tools.clock.sleep(wait)
                    wait = min(2 * wait, 5.0)
                else:
                    self._trouble = ""
                    return
        finally:
            self._mending.discard(pull)

    def _end_of_lease(self, began: float) -> float:
        # The server begins to count a little before it writes the message, hence the margin.
        return began + self._ack_wait - min(0.5, self._ack_wait / 10)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _forget(self, receipt: Receipt) -> None:
        if self._held.get(receipt.seq) is receipt:
            del self._held[receipt.seq]
            if receipt.handed:
                self._wake()
            elif self._buffer:
                self._buffer = deque(r for r in self._buffer if r.receipt is not receipt)

    def _lapsed(self, receipt: Receipt) -> None:
        """Forget a message whose lease has ended."""
        self._forget(receipt)

    # -- receiving ----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """See `Subscription.receive`."""
        now = self._monotonic()
        self._until = now + max(wait, _POLL)
        try:
            while True:
                self._limit = min(limit, self._options.prefetch - self._handed(now))
                self._refill()
                if (self._limit > 0 and self._buffer) or now >= self._until:
                    return self._take(self._limit)
                await self._wait(self._until - now)
                now = self._monotonic()
        finally:
            self._limit = 0
            self._asked = self._monotonic()

    def _handed(self, now: float) -> int:
        """Return how many messages are handed out and still ours."""
        return sum(r.handed and r.deadline >= now for r in self._held.values())

    def _take(self, limit: int) -> list[Received]:
        taken: list[Received] = []
        now = self._monotonic()
        while self._buffer and len(taken) < limit:
            received = self._buffer.popleft()
            receipt: Receipt = received.receipt
            if receipt.deadline < now:  # it stood too long: somebody else gets it
                self._lapsed(receipt)
                continue
            receipt.handed = True
            receipt.until = now + self._options.lease
            taken.append(received)
        return taken

    def _refill(self) -> None:
        for pull in self._pulls:
            pull.refill()

    async def _wait(self, wait: float) -> None:
        self._check()
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        alarm = loop.call_later(wait, self._wake)
        try:
            await self._waiter
        finally:
            alarm.cancel()
            self._waiter = None
        if not self._buffer:
            self._check()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"the subscription to {self._source} is closed")
        self._link.use()
        if self._trouble:
            raise BrokerUnavailable(f"{self._source}: {self._trouble}")

    # -- settling -----------------------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """See `Subscription.settle`."""
        results: list[SettleError | None] = [None] * len(outcomes)
        answers: list[tuple[int, Receipt, bytes]] = []
        graves: list[tuple[int, DeadLetter]] = []
        for index, outcome in enumerate(outcomes):
            receipt = outcome.received.receipt
            if error := self._lost(receipt):
                results[index] = error
            elif type(outcome) is DeadLetter:
                graves.append((index, outcome))
            else:
                answers.append((index, receipt, answer_to(outcome)))
        if graves:
            for (index, outcome), error in zip(graves, await self._answers.bury([g for _, g in graves]), strict=True):
                results[index] = error or self._lost(outcome.received.receipt)
                if results[index] is None:
                    answers.append((index, outcome.received.receipt, ACK))
        if answers:
            await self._send_answers(answers, results)
        return results

    def _is_ours(self, receipt: Receipt) -> bool:
        return self._held.get(receipt.seq) is receipt and receipt.deadline >= self._monotonic()

    def _lost(self, receipt: Receipt) -> SettleError | None:
        if self._is_ours(receipt):
            return None
        self._lapsed(receipt)
        return LeaseLost(f"the lease of message {receipt.seq} of {self._source} has ended")

    async def _send_answers(self, answers: list[tuple[int, Receipt, bytes]], results: list[SettleError | None]) -> None:
        for _, receipt, _ in answers:
            receipt.answered = True
        failed = await self._answers.send([(receipt.reply, payload) for _, receipt, payload in answers])
        for (index, receipt, payload), error in zip(answers, failed, strict=True):
            if error is None:
                self._forget(receipt)
            elif payload.startswith(NAK) and not isinstance(error, NotWritten):
                self._forget(receipt)  # it comes again anyway, now or when its lease ends
            else:
                receipt.answered = False
                receipt.doubtful = receipt.doubtful or not isinstance(error, NotWritten)
                results[index] = error

    # -- leases -------------------------------------------------------------------------------------------------

    async def extend(self, received: Sequence[Received], seconds: float) -> Sequence[SettleError | None]:
        """See `Subscription.extend`."""
        receipts: list[Receipt] = [r.receipt for r in received]
        results = [self._lost(receipt) for receipt in receipts]
        until = self._monotonic() + seconds
        kept = [receipt for receipt, error in zip(receipts, results, strict=True) if error is None]
        for receipt in kept:
            receipt.until = max(receipt.until, until)
        await self._renew(kept)
        for index, receipt in enumerate(receipts):
            if receipt.deadline < self._monotonic():  # the server read it too late, if anything was written
                results[index] = self._lost(receipt)
        return results

    async def _renew(self, receipts: list[Receipt]) -> None:
        """Begin the server's ``ack_wait`` anew; leases that last longer are renewed again in time."""
        if not receipts:
            return
        deadline = self._end_of_lease(self._monotonic())
        try:
            self._link.use().write(*[frame(receipt.reply, PROGRESS) for receipt in receipts])
        except errors.Error as exc:
            raise translate(exc, "renewing leases") from exc
        await self._link.sync()
        now = self._monotonic()
        for receipt in receipts:
            if receipt.deadline >= now:  # or it may have been somebody else's that the server has renewed
                receipt.deadline = max(deadline, receipt.deadline)

    async def _renew_in_time(self, receipts: list[Receipt]) -> None:
        try:
            await self._renew(receipts)
        except BrokerUnavailable as exc:
            _log.debug("%s: leases could not be renewed: %s", self._source, exc)

    async def _return_unasked(self, receipts: list[Receipt]) -> None:
        """Give back what nobody asks for: others may want it."""
        try:
            await self._give_back(receipts)
        except (BrokerError, errors.Error) as exc:
            _log.info("%s: messages given back come again when their lease ends: %s", self._source, exc)

    # -- end ----------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `Subscription.aclose`."""
        if self._closed:
            return
        self._closed = True
        self._link.leave(self)
        self._wake()
        try:
            for pull in self._pulls:
                await pull.aclose()
            await self._give_back(self._held.values())
        except (BrokerError, errors.Error) as exc:
            _log.info("%s: unsettled messages come again when their lease ends: %s", self._source, exc)
        finally:
            self._held.clear()
            self._buffer.clear()

    async def _give_back(self, receipts: Iterable[Receipt]) -> None:
        now = self._monotonic()
        if mine := sorted((r for r in receipts if r.deadline >= now), key=lambda r: r.seq):
            self._link.use().write(*[frame(receipt.reply, NAK) for receipt in mine])
            await self._link.sync()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._source}, {len(self._held)} held>"
