"""Batches: one call of the handler for many messages, an outcome for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgbus._delivery import Controls
from msgbus._dispatch import Dispatcher
from msgbus._failure import attempt_of
from msgbus._idempotency import Admission, Guard, Undone
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
                self._judge(items, _blame(exc, len(items)))
                return [item.outcome for item in items]
            return [Ack(received) for received in batch]
        items = [_Item(received) for received in batch]
        fit = [item for item in items if self._prepare(item)]
        if self._guard is not None:
            await self._handle_guarded([item for item in fit if self._identify(item, self._guard)], self._guard)
        elif fit:
            self._judge(fit, await self._failures(fit))
        return [item.outcome for item in items]

    def _simple(self, batch: Sequence[Received]) -> _Batch | None:
        """Return the payloads of a batch in which no message needs a closer look, else None."""
        decode = self._one.decoder
        if decode is None:
            return None
        payloads = _Batch()
        for received in batch:
            if not received.plain:
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

    def _identify(self, item: _Item, guard: Guard) -> bool:
        payload = item.payload.payload if self._deliveries else item.payload
        try:
            item.claim = guard.claim_for(item.received, payload)
        except Reject as exc:
            item.outcome = self._one.failed(item.received, exc, item.attempt)
            return False
        return True

    async def _handle_guarded(self, items: list[_Item], guard: Guard) -> None:
        """Handle what the guard admits. Judged is afterwards: until then its transaction may fail as a whole."""
        if not items:
            return
        claims = [item.claim for item in items if item.claim is not None]
        fit: list[_Item] = []
        failures: dict[int, BaseException] = {}
        try:
            async with guard.admit(claims, [item.received for item in items]) as admission:
                for item, verdict in zip(items, admission.verdicts, strict=True):
                    if isinstance(verdict, Granted):
                        fit.append(item)
                    else:
                        item.outcome = self._one.duplicate(item.received, verdict, item.attempt)
                if fit:
                    failures = await self._failures(fit, admission.transaction)
                    await self._settle(fit, failures, admission)
        except Undone as exc:
            for item in items:
                item.outcome = self._one.undone(item.received, exc)
            return
        except BatchFailed as exc:
            failures = dict(exc.failures)
        except Exception as exc:  # noqa: BLE001 - what the handler, or the end of its transaction, raised
            failures = dict.fromkeys(range(len(fit)), exc)
        self._judge(fit, failures)

    async def _settle(self, items: list[_Item], failures: dict[int, BaseException], admission: Admission) -> None:
        if admission.transaction is not None and len(failures) == len(items):
            raise BatchFailed(failures)  # nothing of it is to be committed
        claims = [item.claim for item in items if item.claim is not None]
        await admission.settle(
            [(claim, None) for index, claim in enumerate(claims) if index not in failures],
            [claim for index, claim in enumerate(claims) if index in failures],
        )

    async def _failures(self, items: list[_Item], transaction: Any = None) -> dict[int, BaseException]:
        """Call the handler; return what failed."""
        batch = _Batch(item.payload for item in items)
        batch.transaction = transaction
        if transaction is not None and self._deliveries:
            for delivery in batch:
                delivery.transaction = transaction
        try:
            await self._call(batch)
        except Exception as exc:
            if transaction is not None and not isinstance(exc, BatchFailed):
                raise  # it is told whether its connection broke
            return _blame(exc, len(items))
        return {}

    def _judge(self, items: list[_Item], failures: dict[int, BaseException]) -> None:
        for index, item in enumerate(items):
            error = failures.get(index)
            item.outcome = Ack(item.received) if error is None else self._one.failed(item.received, error, item.attempt)


def _blame(error: Exception, count: int) -> dict[int, BaseException]:
    """Return which of *count* items failed, when the handler raised *error*."""
    if not isinstance(error, BatchFailed):
        return dict.fromkeys(range(count), error)
    if unknown := [i for i in error.failures if not 0 <= i < count]:
        wrong = IndexError(f"BatchFailed names item {unknown[0]}, the batch has {count}")
        return dict.fromkeys(range(count), wrong)
    return dict(error.failures)


class _Batch(list[Any]):
    """What a batch handler is called with; carries the transaction to those that take it."""

    transaction: Any = None
