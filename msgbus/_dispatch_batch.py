"""Batches: one call of the handler for many messages, an outcome for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgbus._delivery import Controls
from msgbus._dispatch import Dispatcher
from msgbus._failure import attempt_of
from msgbus._idempotency import Guard
from msgbus._message import ATTEMPTS, EXPIRES
from msgbus.adapter import Ack, Outcome, Received
from msgbus.errors import BatchFailed, DecodeError, Reject
from msgbus.store import Claim, Granted

__all__ = ["BatchDispatcher"]


class _Item:
    __slots__ = ("attempt", "claim", "outcome", "payload", "received")

    def __init__(self, received: Received) -> None:
        self.received = received
        self.attempt = attempt_of(received)
        self.payload: Any = None
        self.claim: Claim | None = None
        self.outcome: Outcome | None = None


class BatchDispatcher:
    """Handles the messages of one subscription batch by batch.

    Args:
        one: The dispatcher that judges single messages.
        call: The handler; takes the list it asked for.
        deliveries: Whether the handler takes deliveries instead of payloads.
        controls: For those deliveries.
        guard: Idempotency, or None.
    """

    def __init__(
        self,
        one: Dispatcher,
        call: Callable[[list[Any]], Awaitable[Any]],
        *,
        deliveries: bool,
        controls: Controls,
        guard: Guard | None,
    ) -> None:
        self._one = one
        self._call = call
        self._deliveries = deliveries
        self._controls = controls
        self._guard = guard

    def failed(self, received: Received, error: BaseException, attempt: int) -> Outcome | None:
        """Return what becomes of a message whose handler was stopped."""
        return self._one.failed(received, error, attempt)

    async def handle(self, batch: Sequence[Received]) -> list[Outcome | None]:
        """Handle a batch; return each message's outcome in order."""
        if self._guard is None and not self._deliveries and (payloads := self._simple(batch)) is not None:
            try:
                await self._call(payloads)
            except Exception as exc:  # noqa: BLE001 - whatever a handler raises decides about its messages
                items = [_Item(received) for received in batch]
                await self._judge_all(items, exc)
                return [item.outcome for item in items]
            return [Ack(received) for received in batch]
        items = [_Item(received) for received in batch]
        fit = [item for item in items if self._prepare(item)]
        if self._guard is not None:
            granted = await asyncio.gather(*(self._claim(item, self._guard) for item in fit))
            fit = [item for item, mine in zip(fit, granted, strict=True) if mine]
        if fit:
            await self._handle_fit(fit)
        return [item.outcome for item in items]

    def _simple(self, batch: Sequence[Received]) -> list[Any] | None:
        """Return the payloads of a batch in which no message needs a closer look, else None."""
        decode = self._one.decoder
        if decode is None:
            return None
        payloads = []
        for received in batch:
            headers = received.headers
            if received.deliveries > 1 or ATTEMPTS in headers or EXPIRES in headers:
                return None
            try:
                payloads.append(decode(received.body))
            except DecodeError:
                return None
        return payloads

    def _prepare(self, item: _Item) -> bool:
        received = item.received
        if item.attempt > self._one.limit:
            item.outcome = self._one.crashed(received, item.attempt)
            return False
        if EXPIRES in received.headers and (outcome := self._one.expired(received, item.attempt)):
            item.outcome = outcome
            return False
        try:
            payload = self._one.decode(received)
        except DecodeError as exc:
            item.outcome = self._one.undecodable(received, exc, item.attempt)
            return False
        item.payload = (
            self._one.delivery(received, payload, item.attempt, self._controls) if self._deliveries else payload
        )
        return True

    async def _claim(self, item: _Item, guard: Guard) -> bool:
        payload = item.payload.payload if self._deliveries else item.payload
        try:
            item.claim = guard.claim_for(item.received, payload)
        except Reject as exc:
            item.outcome = self._one.failed(item.received, exc, item.attempt)
            return False
        verdict = await guard.admit(item.claim)
        if isinstance(verdict, Granted):
            return True
        item.claim = None
        item.outcome = self._one.duplicate(item.received, verdict, item.attempt)
        return False

    async def _handle_fit(self, items: list[_Item]) -> None:
        error: Exception | None = None
        try:
            await self._call([item.payload for item in items])
        except Exception as exc:  # noqa: BLE001 - whatever a handler raises decides about its messages
            error = exc
        except BaseException:
            await self._release(items)
            raise
        await self._judge_all(items, error)

    async def _judge_all(self, items: list[_Item], error: Exception | None) -> None:
        failures: dict[int, BaseException] = {}
        if isinstance(error, BatchFailed):
            failures = error.failures
            if unknown := [i for i in failures if not 0 <= i < len(items)]:
                wrong = IndexError(f"BatchFailed names item {unknown[0]}, the batch has {len(items)}")
                failures = dict.fromkeys(range(len(items)), wrong)
        elif error is not None:
            failures = dict.fromkeys(range(len(items)), error)
        verdicts = [self._judge(item, failures.get(index)) for index, item in enumerate(items)]
        if self._guard is None:  # nothing to wait for, so no task for each
            for verdict in verdicts:
                await verdict
        else:
            await asyncio.gather(*verdicts)

    async def _judge(self, item: _Item, error: BaseException | None) -> None:
        if error is not None:
            await self._release([item])
            item.outcome = self._one.failed(item.received, error, item.attempt)
            return
        if self._guard is not None and item.claim is not None:
            await self._guard.complete(item.claim, None)
        item.outcome = Ack(item.received)

    async def _release(self, items: list[_Item]) -> None:
        for item in items:
            if self._guard is not None and item.claim is not None:
                await self._guard.release(item.claim)
