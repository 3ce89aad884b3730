"""The only consume loop: receive, lanes, bounded concurrency, settle, drain.

A fixed set of workers is fed from a deque; there is no task, timer, context variable or log line per message.
Outcomes go to the settler in batches. At most ``prefetch`` messages are held: received and not settled yet.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgbus._backoff import RECONNECT
from msgbus._lanes import Lanes, closes_lane, key_of
from msgbus._limits import Limits
from msgbus._message import ID
from msgbus._settler import Settler
from msgbus._time import Clock
from msgbus._watchdog import Interruption, renew_leases, watch_timeouts
from msgbus._worker import BatchWorker, Handles, Worker
from msgbus.adapter import Ack, Capabilities, DeadLetter, Nack, Outcome, Received, Source, Subscription
from msgbus.errors import BrokerError, BrokerUnavailable, SettleError

__all__ = ["Receiver"]

_log = logging.getLogger("msgbus")
_WAIT = 5.0
"""Seconds one idle receive call lasts. Shorter only costs wake-ups; longer gains nothing."""
_REMEMBERED = 10_000
"""How many handled messages whose ack failed are remembered, so that their redelivery is acked unhandled."""
_SETTLE_GRACE = 5.0
"""Seconds that the last settlements get at shutdown beyond the handlers' own time."""


class Receiver:
    """Consumes one source until it is drained.

    Args:
        subscription: Where messages come from.
        source: What it consumes.
        limits: How much at once.
        capabilities: The adapter's.
        clock: The bus's.
        on_crash: Called when a part of the receiver itself fails, which is a bug.
    """

    def __init__(
        self,
        subscription: Subscription,
        source: Source,
        limits: Limits,
        *,
        capabilities: Capabilities,
        clock: Clock,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.source = source
        self.limits = limits
        self.healthy = True
        self.last_received: float | None = None
        self._subscription = subscription
        self._capabilities = capabilities
        self._clock = clock
        self._on_crash = on_crash
        self._settler = Settler(
            subscription,
            max_batch=capabilities.max_settle,
            on_settled=self._settled,
            on_all_settled=self._all_settled,
        )
        self._live: dict[Received, None] = {}
        self._ready: deque[Received] = deque()
        self._lanes = Lanes() if source.address.keyed else None
        self._workers: list[Worker] = []
        self._by_task: dict[asyncio.Task[Any] | None, Worker] = {}
        self._idle: deque[asyncio.Future[None]] = deque()
        self._room = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._burying: set[Received] = set()
        self._closed_early: set[Received] = set()
        self._left: set[Received] = set()
        self._handled: OrderedDict[str, None] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._draining: asyncio.Timeout | None = None
        self._hurried = self._ending = False

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, handler: Handles, *, also: Coroutine[Any, Any, None] | None = None) -> None:
        """Start consuming.

        Args:
            handler: Turns messages into outcomes.
            also: Something that must run meanwhile (the idempotency heartbeat).
        """
        for _ in range(self.limits.concurrency):
            worker = (BatchWorker if self.limits.batch else Worker)(self, handler, self._clock)
            worker.task = self._spawn(worker.run())
            self._workers.append(worker)
            self._by_task[worker.task] = worker
        if self._capabilities.lease == "renewable":
            self._spawn(
                renew_leases(self._subscription, self.limits.lease, self._clock, lambda: list(self._live), self._lost)
            )
        if self.limits.timeout is not None:
            self._spawn(watch_timeouts(self._workers, self.limits.timeout, self._clock))
        if also is not None:
            self._spawn(also)
        self._fetcher = self._spawn(self._fetch())
        self._subscription.deliver = self._deliver if self._lanes is None and not self.limits.batch else None

    async def drain(self, timeout: float) -> None:
        """Stop receiving, let handlers finish for *timeout* seconds, give the rest back uncounted, close."""
        self._ending = True
        await self.pause()
        self._give_back_waiting()
        if not await self._wait_quiet(0.0 if self._hurried else timeout):
            _log.warning("%s: %d handlers did not finish in %g s", self.source, self.running, timeout)
            for worker in self._workers:
                worker.interrupt(Interruption.SHUTDOWN)
            if not await self._wait_quiet(_SETTLE_GRACE):
                _log.error("%s: %d handlers ignore their cancellation", self.source, self.running)
        try:
            async with asyncio.timeout(_SETTLE_GRACE):
                await self._settler.drain()
                while self._live and not self.running:  # requests: they are settled once their answers are out
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            _log.warning("%s: %d messages could not be settled and will come again", self.source, len(self._live))
        await self._close()

    async def pause(self) -> None:
        """Receive no more until `resume`; what is held is still handled."""
        self._fetcher.cancel()
        await asyncio.wait([self._fetcher])

    def resume(self) -> None:
        """Go on receiving after `pause`; not any more once it drains."""
        if self._fetcher.done() and not self._ending:
            self._fetcher = self._spawn(self._fetch())

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_SETTLE_GRACE)
        await self._settler.aclose()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        await self._subscription.aclose()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.append(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._on_crash(error)

    def in_thread(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a plain function in this subscription's thread pool."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.limits.concurrency, thread_name_prefix="msgbus-handler")
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return sum(worker.since is not None for worker in self._workers)

    @property
    def held(self) -> int:
        """How many messages are received and not settled."""
        return len(self._live)

    def hurry(self) -> None:
        """Cancel running handlers now, or as soon as `drain` begins, instead of waiting for its timeout."""
        self._hurried = True
        if self._draining is not None:
            self._draining.reschedule(asyncio.get_running_loop().time())

    async def _wait_quiet(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout) as self._draining:
                while self.running:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            return False
        finally:
            self._draining = None
        return True

    # -- receiving ----------------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        failures = 0
        while True:
            free = self.limits.prefetch - len(self._live)
            if free < self.limits.refill:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                got = await self._subscription.receive(free, _WAIT)
            except BrokerError as exc:
                failures += 1
                self.healthy = False
                if failures == 1:
                    level = logging.WARNING if isinstance(exc, BrokerUnavailable) else logging.ERROR
                    _log.log(level, "%s: cannot receive, trying again: %s", self.source, exc)
                await self._clock.sleep(RECONNECT.delay(failures))
                continue
            if failures:
                _log.info("%s: receiving again", self.source)
                failures, self.healthy = 0, True
            if got:
                self._admit(got)

    def _deliver(self, received: Received) -> bool:
        """Take a message straight to an idle worker; all that is out of the ordinary takes the usual way."""
        stopped = self._ending or self._fetcher.done() or self._fetcher.cancelling()
        full = not self._idle or len(self._live) >= self.limits.prefetch
        if taken := not (stopped or full or self._ready or self._handled):
            self._admit((received,))
        return taken

    def _admit(self, got: Any) -> None:
        self.last_received = self._clock.now()
        live, ready, lanes = self._live, self._ready, self._lanes
        if lanes is None and not self._handled:
            live.update(dict.fromkeys(got))
            ready.extend(got)
            self.wake(len(ready))
            return
        for received in got:
            live[received] = None
            if self._handled and self._handled.pop(received.headers.get(ID, ""), self) is None:
                self._settler.add(Ack(received))
                continue
            if lanes is not None and (key := key_of(received)) is not None and not lanes.admit(key, received):
                continue
            ready.append(received)
        self.wake(len(ready))

    def wake(self, count: int) -> None:
        """Wake up to *count* idle workers."""
        idle = self._idle
        while count and idle:
            future = idle.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1

    async def wait_for_work(self) -> None:
        """Return when there may be something to handle (called by workers)."""
        self._quiet.set()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(future)
        await future

    @property
    def ready(self) -> deque[Received]:
        """Messages that may be handled now (taken by workers)."""
        return self._ready

    # -- guarding -----------------------------------------------------------------------------------------------

    def pause_timeout(self, *, paused: bool) -> None:
        """Stop the clock of the worker whose task this is, or set it to its handler's full time again."""
        worker = self._by_task.get(asyncio.current_task())
        if worker is not None and worker.since is not None:
            worker.since = math.inf if paused else self._clock.monotonic()

    def lose(self, received: Received) -> None:
        """Cancel the message's handler: the message is somebody else's."""
        for worker in self._workers:
            if received in worker.holds:
                worker.interrupt(Interruption.LEASE_LOST)

    # -- settling -----------------------------------------------------------------------------------------------

    def conclude(self, received: Received, outcome: Outcome | None) -> None:
        """Take a worker's verdict on a message; None when it is settled elsewhere."""
        if outcome is not None:
            self._settler.add(outcome)
        if self._lanes is not None and (key := key_of(received)) is not None:
            self._conclude_in_lane(self._lanes, key, received, outcome)

    def conclude_all(self, batch: Sequence[Received], outcomes: Sequence[Outcome | None]) -> None:
        """Take a worker's verdicts on a batch."""
        if self._lanes is None:
            self._settler.add_all([outcome for outcome in outcomes if outcome is not None])
        else:
            for received, outcome in zip(batch, outcomes, strict=True):
                self.conclude(received, outcome)

    def _conclude_in_lane(self, lanes: Lanes, key: str, received: Received, outcome: Outcome | None) -> None:
        if outcome is not None and closes_lane(outcome):
            self._give_back(lanes.close(key))
        elif type(outcome) is DeadLetter:
            self._burying.add(received)  # the key goes on once the dead letter is safe
        elif received in self._closed_early:
            self._closed_early.discard(received)
        else:
            self._next_in_lane(lanes, key)

    def _next_in_lane(self, lanes: Lanes, key: str) -> None:
        following = lanes.done(key)
        if following is not None:
            self._ready.append(following)
            self.wake(1)

    async def settle_now(self, outcome: Outcome) -> None:
        """Settle a message before its handler ends (`Delivery.ack` and its like)."""
        outcomes: list[Outcome] = [outcome]
        key = key_of(outcome.received)
        if self._lanes is not None and key is not None and closes_lane(outcome):
            self._closed_early.add(outcome.received)
            outcomes += [Nack(behind, counted=False) for behind in self._lanes.close(key)]
        await self._settler.now(outcomes)

    async def extend(self, received: Received, seconds: float) -> None:
        """Renew one message's lease; raises `LeaseLost`."""
        (error,) = await self._subscription.extend([received], seconds)
        if error is not None:
            raise error

    def settle_later(self, outcome: Outcome) -> None:
        """Settle a message whose worker concluded with None (an answered request)."""
        self._settler.add(outcome)

    def _settled(self, outcome: Outcome, error: SettleError | None) -> None:
        if error is not None and type(outcome) is Ack and (key := outcome.received.headers.get(ID)):
            self._handled[key] = None
            if len(self._handled) > _REMEMBERED:
                self._handled.popitem(last=False)
        if error is not None and self._lanes is not None and outcome.received in self._burying:
            self._burying.discard(outcome.received)  # it comes again, and what waits behind it must not come first
            self._give_back(self._lanes.close(key_of(outcome.received) or ""))
        self._all_settled([outcome])

    def _all_settled(self, outcomes: Sequence[Outcome]) -> None:
        live = self._live
        for outcome in outcomes:
            live.pop(outcome.received, None)
        self._quiet.set()  # for a drain that waits for it
        if (lanes := self._lanes) is not None:
            for outcome in outcomes:
                if type(outcome) is not Ack and (key := key_of(outcome.received)) is not None:
                    self._settled_in_lane(lanes, key, outcome.received)
        if not self._room.is_set() and self.limits.prefetch - len(live) >= self.limits.refill:
            self._room.set()

    def _settled_in_lane(self, lanes: Lanes, key: str, received: Received) -> None:
        if received in self._left:
            self._left.discard(received)  # it was out of its lane before
        elif received in self._burying:
            self._burying.discard(received)
            self._next_in_lane(lanes, key)
        elif lanes.is_closing(key):
            self._give_back(lanes.returned(key))

    def _give_back(self, messages: list[Received]) -> None:
        for received in messages:
            self._settler.add(Nack(received, counted=False))

    def _give_back_waiting(self) -> None:
        """Give back what no handler has seen, in the order it was received."""
        running = {received for worker in self._workers for received in worker.holds}
        waiting = set(self._ready)
        if self._lanes is not None:
            waiting.update(self._lanes.clear())
        self._ready.clear()
        self._give_back([received for received in self._live if received in waiting and received not in running])

    def _lost(self, received: Received) -> None:
        if received not in self._live:
            return  # settled while the renewal was under way
        for worker in self._workers:
            if received in worker.holds:
                _log.warning("%s: a message's lease was lost while it was handled", self.source)
                worker.interrupt(Interruption.LEASE_LOST)
                return
        if received in self._ready:
            self._ready.remove(received)
            self.conclude(received, Nack(received, counted=False))  # the new owner is not disturbed
        elif self._lanes is not None and (key := key_of(received)) is not None:
            left = self._lanes.leave(key, received)  # what waits behind it would run before it
            self._left.update(left)
            self._give_back(left)
