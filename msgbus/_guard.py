"""Idempotency with a store: claim, handle, complete; release when the handler failed."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from msgbus._backoff import RECONNECT
from msgbus._batcher import Calls
from msgbus._idempotency import Admission, Guard, Host, Idempotency
from msgbus._time import Clock
from msgbus.adapter import Health, Received
from msgbus.errors import ClaimLost, StoreError, StoreUnavailable
from msgbus.store import Claim, Completion, Granted, Store, Verdict

__all__ = ["StoreCalls", "StoreGuard"]

T = TypeVar("T")
R = TypeVar("R")
_log = logging.getLogger("msgbus")
_DOWN = 1.0
"""Seconds between two tries of a store that is away, for handlers that do not wait for it."""


class StoreCalls:
    """A store whose concurrent calls are gathered into batches.

    Args:
        store: The store.
        clock: The bus's.

    Attributes:
        health: Whether the last call reached it.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.health = Health(True)
        self._failed = -math.inf
        self.claim: Calls[Claim, Verdict] = Calls(self._watched(store.claim), max_batch=200, in_flight=2)
        self.complete: Calls[Completion, StoreError | None] = Calls(
            self._watched(store.complete), max_batch=200, in_flight=2
        )
        self.release: Calls[Claim, None] = Calls(self._release, max_batch=200)

    @property
    def is_down(self) -> bool:
        """Whether a call failed so short a time ago that the next one had better not be tried yet."""
        return not self.health.ok and self.clock.monotonic() < self._failed + _DOWN

    async def aclose(self) -> None:
        """Stop what runs and close the store."""
        for calls in (self.claim, self.complete, self.release):
            await calls.aclose()
        await self.store.aclose()

    def _watched(self, call: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> Callable[[Sequence[T]], Any]:
        async def watched(items: Sequence[T]) -> Sequence[R]:
            try:
                results = await call(items)
            except StoreError as exc:
                self.health = Health(False, str(exc))
                self._failed = self.clock.monotonic()
                raise
            self.health = Health(True)
            return results

        return watched

    async def _release(self, claims: Sequence[Claim]) -> Sequence[None]:
        await self.store.release(claims)
        return [None] * len(claims)


class StoreGuard(Guard):
    """Idempotency for one subscription, by a store.

    Args:
        options: The handler's wishes.
        scope: Who handles: channel and group.
        calls: The store.
        host: The receiver.
    """

    def __init__(self, options: Idempotency, scope: str, calls: StoreCalls, host: Host) -> None:
        super().__init__(options, scope)
        self._calls = calls
        self._host = host
        self._running: dict[Claim, Received] = {}
        self._completing: set[Claim] = set()

    @asynccontextmanager
    async def admit(self, claims: Sequence[Claim], received: Sequence[Received]) -> AsyncIterator[Admission]:
        """Claim; wait for the store while it is unreachable, or let the messages through, as the options say."""
        admission = _Admission(self)
        self._host.pause_timeout(paused=True)  # waiting for the store is no part of the handler's time
        try:
            asked = (self._ask(claim, message) for claim, message in zip(claims, received, strict=True))
            admission.verdicts = await asyncio.gather(*asked) if len(claims) > 1 else [await next(asked)]
            self._host.pause_timeout(paused=False)
            yield admission
        except BaseException:
            # Cancelled while it was asked for, a claim may have been granted; away as it is, the store may not be.
            unknown = not hasattr(admission, "verdicts") and self._calls.health.ok
            await asyncio.gather(*(self.release(claim) for claim in claims if unknown or claim in self._running))
            raise
        finally:
            for claim in claims:
                self._running.pop(claim, None)

    def finish(self) -> None:
        """Stop the handler's clock: it has ended in time."""
        self._host.pause_timeout(paused=True)

    async def complete(self, claim: Claim, reply: bytes | None) -> None:
        """Mark the claim done. Keeps trying while the store is unreachable: the effect has happened."""
        self._completing.add(claim)
        try:
            error = await self._complete(Completion(claim, reply, self.ttl))
        finally:
            # If it was cancelled, the lease ends by itself: given up, the key would be handled again at once.
            self._completing.discard(claim)
            self._running.pop(claim, None)
        if error is not None:
            _log.warning("%r took longer than its claim and may have been handled twice: %s", claim.key, error)

    async def release(self, claim: Claim) -> None:
        """Give the claim up; if the store is unreachable its lease ends by itself."""
        self._running.pop(claim, None)
        try:
            await self._calls.release(claim)
        except StoreError as exc:
            _log.warning("%r stays claimed until its lease ends: %s", claim.key, exc)

    @property
    def heartbeat(self) -> Callable[[], Awaitable[None]] | None:
        """Renew the claims of all running handlers."""
        return self._extend

    async def _ask(self, claim: Claim, received: Received) -> Verdict:
        failures = 0
        while True:
            try:
                self._check_down()
                verdict = await self._calls.claim(claim)
            except StoreError as exc:
                if self._options.on_store_error == "handle":
                    _log.warning("the idempotency store is unreachable, handling without it: %s", exc)
                    verdict = Granted()
                    break
                failures += 1
                if failures == 1:
                    _log.warning("the idempotency store is unreachable, waiting for it: %s", exc)
                await self._calls.clock.sleep(RECONNECT.delay(failures))
            else:
                break
        if isinstance(verdict, Granted):
            self._running[claim] = received
        return verdict

    def _check_down(self) -> None:
        """Do not make a message wait in vain whose handler goes on without the store."""
        if self._options.on_store_error == "handle" and self._calls.is_down:
            raise StoreUnavailable(self._calls.health.reason)

    async def _complete(self, completion: Completion) -> StoreError | None:
        failures = 0
        while True:
            try:
                self._check_down()
                return await self._calls.complete(completion)
            except StoreError as exc:
                key = completion.claim.key
                if self._options.on_store_error == "handle":
                    _log.warning("%r was handled but the idempotency store does not know: %s", key, exc)
                    return None
                failures += 1
                if failures == 1:
                    _log.warning("%r was handled, waiting for the idempotency store to note it: %s", key, exc)
                await self._calls.clock.sleep(RECONNECT.delay(failures))

    async def _extend(self) -> None:
        running = list(self._running)
        if not running:
            return
        try:
            results = await self._calls.store.extend(running)
            lost = [claim for claim, error in zip(running, results, strict=True) if isinstance(error, ClaimLost)]
            # A lease that ended while the store was away is had again, unless somebody else was faster.
            verdicts = await self._calls.store.claim(lost) if lost else ()
        except StoreError as exc:
            _log.warning("%d idempotency claims could not be renewed: %s", len(running), exc)
            return
        for claim, verdict in zip(lost, verdicts, strict=True):
            received = self._running.get(claim)
            if isinstance(verdict, Granted):
                if received is None:  # given up meanwhile
                    await self.release(claim)
            elif received is not None and claim not in self._completing:
                _log.warning("%r was claimed by another worker while it was handled: %s", claim.key, verdict)
                self._host.lose(received)


class _Admission(Admission):
    def __init__(self, guard: StoreGuard) -> None:
        self._guard = guard

    async def settle(self, done: Sequence[tuple[Claim, bytes | None]], failed: Sequence[Claim] = ()) -> None:
        """Complete and release."""
        self._guard.finish()
        complete = [self._guard.complete(claim, reply) for claim, reply in done]
        await asyncio.gather(*complete, *(self._guard.release(claim) for claim in failed))
