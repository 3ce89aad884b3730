"""Workers: each handles one message (or one batch) at a time, and can be interrupted while it does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from msgbus._failure import attempt_of
from msgbus._limits import Limits
from msgbus._time import Clock
from msgbus._watchdog import Interruption
from msgbus.adapter import Nack, Outcome, Received

__all__ = ["BatchWorker", "Handles", "Worker"]


class Handles(Protocol):
    """Turns messages into outcomes: the dispatcher, or its batch sibling."""

    def handle(self, received: Any) -> Awaitable[Any]:
        """Handle a message (or a list of them); return its outcome (or one for each)."""
        ...

    def failed(self, received: Received, error: BaseException, attempt: int) -> Outcome | None:
        """Return what becomes of a message whose handler was stopped."""
        ...


class Feeds(Protocol):
    """What a worker needs of its receiver."""

    limits: Limits

    @property
    def ready(self) -> deque[Received]:
        """What may be handled now."""
        ...

    async def wait_for_work(self) -> None:
        """Return when there may be more."""
        ...

    def conclude(self, received: Received, outcome: Outcome | None) -> None:
        """Take the verdict."""
        ...

    def conclude_all(self, batch: Sequence[Received], outcomes: Sequence[Outcome | None]) -> None:
        """Take the verdicts on a batch."""
        ...


class Worker:
    """Handles one message after the other.

    Attributes:
        task: The task it runs in.
        since: When its handler started (monotonic), None while it has none.
        holds: The messages it handles now.
    """

    task: asyncio.Task[None]

    def __init__(self, receiver: Feeds, handler: Handles, clock: Clock) -> None:
        self.since: float | None = None
        self.holds: Sequence[Received] = ()
        self._receiver = receiver
        self._handler = handler
        self._monotonic = clock.monotonic
        self._reason: Interruption | None = None

    def interrupt(self, reason: Interruption) -> None:
        """Cancel the handler that runs, if one does."""
        if self.since is not None and self._reason is None:
            self._reason = reason
            self.task.cancel()

    async def run(self) -> None:
        """Work until cancelled."""
        receiver, ready, monotonic = self._receiver, self._receiver.ready, self._monotonic
        handle, conclude = self._handler.handle, self._receiver.conclude
        while True:
            while ready:
                received = ready.popleft()
                self.holds = (received,)
                self.since = monotonic()
                try:
                    outcome = await handle(received)
                except asyncio.CancelledError as exc:
                    outcome = self._interrupted(received, exc)
                if self._reason is not None:
                    self._reset()
                self.since = None
                self.holds = ()
                conclude(received, outcome)
            await receiver.wait_for_work()

    def _interrupted(self, received: Received, cancelled: asyncio.CancelledError) -> Outcome | None:
        """Return what becomes of a message whose handler was cancelled; re-raise when it was not by `interrupt`."""
        match self._reason:
            case Interruption.TIMEOUT:
                error = TimeoutError(f"the handler took longer than {self._receiver.limits.timeout:g} s")
                return self._handler.failed(received, error, attempt_of(received))
            case Interruption.LEASE_LOST:
                return Nack(received, counted=False)  # tells the adapter to forget it; the new owner is not disturbed
            case Interruption.SHUTDOWN:
                return Nack(received, counted=False)
            case None if self.task.cancelling():
                raise cancelled
            case None:
                return self._handler.failed(received, cancelled, attempt_of(received))

    def _reset(self) -> None:
        """Take the cancellation back, whether or not the handler let itself be cancelled."""
        self._reason = None
        self.task.uncancel()


class BatchWorker(Worker):
    """Handles batch after batch."""

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = await self._collect()
            self.holds = batch
            self.since = self._monotonic()
            try:
                outcomes = await self._handler.handle(batch)
            except asyncio.CancelledError as exc:
                outcomes = [self._interrupted(received, exc) for received in batch]
            if self._reason is not None:
                self._reset()
            self.since = None
            self.holds = ()
            self._receiver.conclude_all(batch, outcomes)

    async def _collect(self) -> list[Received]:
        """Take up to a batch of messages; wait a little for it to fill once there is one."""
        ready, limits = self._receiver.ready, self._receiver.limits
        while True:
            while not ready:
                await self._receiver.wait_for_work()
            if len(ready) < limits.batch:
                await self._wait_for_more()
            if ready:  # another worker may have taken them meanwhile
                return [ready.popleft() for _ in range(min(len(ready), limits.batch))]

    async def _wait_for_more(self) -> None:
        ready, limits = self._receiver.ready, self._receiver.limits
        try:
            async with asyncio.timeout(limits.batch_wait):
                while len(ready) < limits.batch:
                    await self._receiver.wait_for_work()
        except TimeoutError:
            pass  # a short batch is a batch
