"""Settling in batches, off the handlers' path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from msgbus._backoff import RECONNECT
from msgbus._batcher import Batcher
from msgbus.adapter import Ack, Outcome, Subscription
from msgbus.errors import BrokerUnavailable, LeaseLost, SettleError

__all__ = ["Settler"]

_log = logging.getLogger("msgbus")


class Settler:
    """Takes outcomes and settles them in batches until the broker has each, or says that the lease is lost.

    Acks travel apart from nacks and dead letters: moving a message waits for a publish to be confirmed, and a
    publisher that the broker blocks must not stop the acks.

    Args:
        subscription: Where the messages came from.
        max_batch: The most outcomes per call.
        on_settled: Called for each outcome that is through, with None or `LeaseLost`.
        on_all_settled: Called instead with a whole batch of which the broker has each.
    """

    def __init__(
        self,
        subscription: Subscription,
        *,
        max_batch: int,
        on_settled: Callable[[Outcome, SettleError | None], None],
        on_all_settled: Callable[[Sequence[Outcome]], None],
    ) -> None:
        self._subscription = subscription
        self._on_settled = on_settled
        self._on_all_settled = on_all_settled
        self._acks: Batcher[Outcome] = Batcher(self._flush, max_batch=max_batch)
        self._moves: Batcher[Outcome] = Batcher(self._flush, max_batch=max_batch)
        self._failed = 0

    def add(self, outcome: Outcome) -> None:
        """Settle *outcome* soon."""
        (self._acks if type(outcome) is Ack else self._moves).add(outcome)

    def add_all(self, outcomes: Sequence[Outcome]) -> None:
        """Settle *outcomes* soon."""
        if all(type(outcome) is Ack for outcome in outcomes):
            self._acks.extend(outcomes)
        else:
            for outcome in outcomes:
                self.add(outcome)

    async def now(self, outcomes: list[Outcome]) -> None:
        """Settle *outcomes* and wait for the broker.

        Raises:
            SettleError: The broker did not take the first one.
        """
        errors = await self._call(outcomes)
        for outcome, error in zip(outcomes, errors, strict=True):
            self._on_settled(outcome, error)
        if errors[0] is not None:
            raise errors[0]

    async def drain(self) -> None:
        """Return when all that was added is settled."""
        await self._acks.drain()
        await self._moves.drain()

    async def aclose(self) -> None:
        """Stop; what the broker has not taken yet comes again."""
        await self._acks.aclose()
        await self._moves.aclose()

    async def _flush(self, batch: list[Outcome]) -> None:
        while batch:
            again: list[Outcome] = []
            why: SettleError | None = None
            errors = await self._call(batch)
            if not any(errors):
                self._failed = 0
                self._on_all_settled(batch)
                return
            for outcome, error in zip(batch, errors, strict=True):
                if error is None or isinstance(error, LeaseLost):
                    self._on_settled(outcome, error)
                else:
                    again.append(outcome)
                    why = error
            self._failed = self._failed + 1 if again else 0
            if again:
                if self._failed == 1:
                    _log.warning("%d messages could not be settled yet, trying again: %s", len(again), why)
                await asyncio.sleep(RECONNECT.delay(self._failed))
            batch = again

    async def _call(self, batch: list[Outcome]) -> Sequence[SettleError | None]:
        try:
            return await self._subscription.settle(batch)
        except BrokerUnavailable as exc:
            error = SettleError(str(exc))
            error.__cause__ = exc
            return [error] * len(batch)
