"""Handle every message once: claim, handle, complete; release when the handler failed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from msgbus._backoff import RECONNECT
from msgbus._batcher import Calls
from msgbus._message import ID, new_id
from msgbus._time import Duration, seconds
from msgbus.adapter import Health, Received
from msgbus.errors import Reject, StoreError, StoreUnavailable
from msgbus.store import Claim, Completion, Granted, Store, Verdict

__all__ = ["Guard", "Idempotency", "StoreCalls"]

T = TypeVar("T")
R = TypeVar("R")
_log = logging.getLogger("msgbus")
_MAX_KEY = 512


@dataclass(frozen=True, slots=True)
class Idempotency:
    """How a handler's messages are handled once although they may arrive twice.

    Args:
        ttl: Seconds (or a timedelta) for which a handled key is remembered.
        key: What identifies the work: the name of a payload's attribute (or item), or a function from payload to
            text. The message id by default, which catches redeliveries and repeated publishes of one message; a
            business key also catches two messages about the same thing.
        lease: Seconds for which a claim outlives its worker. A running handler's claim is renewed by heartbeat.
        on_store_error: While the store is unreachable, ``"wait"`` handles nothing (and health says so),
            ``"handle"`` goes on without protection from duplicates.
    """

    ttl: Duration = 86_400.0
    key: str | Callable[[Any], str] | None = None
    lease: Duration = 60.0
    on_store_error: Literal["wait", "handle"] = "wait"

    def __post_init__(self) -> None:
        if self.on_store_error not in ("wait", "handle"):
            raise ValueError(f"Idempotency(on_store_error=) is 'wait' or 'handle', got {self.on_store_error!r}")
        object.__setattr__(self, "ttl", seconds(self.ttl, "Idempotency(ttl=)"))
        object.__setattr__(self, "lease", seconds(self.lease, "Idempotency(lease=)"))
        if not self.lease:
            raise ValueError("Idempotency(lease=) must be more than 0 seconds")


class StoreCalls:
    """A store whose concurrent calls are gathered into batches.

    Attributes:
        health: Whether the last call reached it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.health = Health(True)
        self.claim: Calls[Claim, Verdict] = Calls(self._watched(store.claim), max_batch=200, in_flight=2)
        self.complete: Calls[Completion, StoreError | None] = Calls(
            self._watched(store.complete), max_batch=200, in_flight=2
        )
        self.release: Calls[Claim, None] = Calls(self._release, max_batch=200)

    async def aclose(self) -> None:
        """Stop what runs and close the store."""
        for calls in (self.claim, self.complete, self.release):
            await calls.aclose()
        await self.store.aclose()

    def _watched(self, call: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> Callable[[Sequence[T]], Any]:
        async def watched(items: Sequence[T]) -> Sequence[R]:
            try:
                results = await call(items)
            except StoreUnavailable as exc:
                self.health = Health(False, str(exc))
                raise
            self.health = Health(True)
            return results

        return watched

    async def _release(self, claims: Sequence[Claim]) -> Sequence[None]:
        await self.store.release(claims)
        return [None] * len(claims)


class Guard:
    """Idempotency for one subscription.

    Args:
        options: The handler's wishes.
        calls: The store.
        scope: Who handles: channel and group.
    """

    def __init__(self, options: Idempotency, calls: StoreCalls, scope: str) -> None:
        self._options = options
        self._calls = calls
        self._scope = scope
        self._key = _key_function(options.key)
        self._ttl = seconds(options.ttl, "ttl")
        self._lease = seconds(options.lease, "lease")
        self._running: set[Claim] = set()

    @property
    def heartbeat(self) -> float:
        """Seconds between two calls of `extend`."""
        return self._lease / 3

    def claim_for(self, received: Received, payload: Any) -> Claim:
        """Return the claim to be made for a message.

        Raises:
            Reject: There is no usable key: the message cannot be told from its duplicates.
        """
        key = self._key(payload) if self._key else received.headers.get(ID)
        if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY:
            raise Reject(
                "the message has no id to tell it from its duplicates; give Idempotency(key=…)"
                if self._key is None
                else f"Idempotency(key=) must give 1 to {_MAX_KEY} characters, got {key!r:.80}"
            )
        fingerprint = hashlib.blake2b(received.body, digest_size=16).hexdigest()
        return Claim(self._scope, key, new_id(), fingerprint, self._lease)

    async def admit(self, claim: Claim) -> Verdict:
        """Ask the store; wait for it while it is unreachable, or let the message through, as the options say."""
        failures = 0
        while True:
            try:
                verdict = await self._calls.claim(claim)
            except StoreUnavailable as exc:
                if self._options.on_store_error == "handle":
                    _log.warning("the idempotency store is unreachable, handling without it: %s", exc)
                    return Granted()
                failures += 1
                if failures == 1:
                    _log.warning("the idempotency store is unreachable, waiting for it: %s", exc)
                await asyncio.sleep(RECONNECT.delay(failures))
            else:
                if isinstance(verdict, Granted):
                    self._running.add(claim)
                return verdict

    async def complete(self, claim: Claim, reply: bytes | None) -> None:
        """Mark the claim done. Keeps trying while the store is unreachable: the effect has happened."""
        failures = 0
        while True:
            try:
                error = await self._calls.complete(Completion(claim, reply, self._ttl))
            except StoreUnavailable as exc:
                if self._options.on_store_error == "handle":
                    _log.warning("%r was handled but the idempotency store does not know: %s", claim.key, exc)
                    break
                failures += 1
                await asyncio.sleep(RECONNECT.delay(failures))
            else:
                if error is not None:
                    _log.warning("%r took longer than its claim and may have been handled twice: %s", claim.key, error)
                break
        self._running.discard(claim)

    async def release(self, claim: Claim) -> None:
        """Give the claim up; if the store is unreachable its lease ends by itself."""
        self._running.discard(claim)
        try:
            await self._calls.release(claim)
        except StoreUnavailable as exc:
            _log.warning("%r stays claimed until its lease ends: %s", claim.key, exc)

    async def extend(self) -> None:
        """Renew the claims of all running handlers."""
        running = list(self._running)
        if not running:
            return
        try:
            await self._calls.store.extend(running)
        except StoreUnavailable as exc:
            _log.warning("%d idempotency claims could not be renewed: %s", len(running), exc)


def _key_function(key: str | Callable[[Any], str] | None) -> Callable[[Any], str] | None:
    if not isinstance(key, str):
        return key
    name = key

    def attribute(payload: Any) -> str:
        value = payload.get(name, "") if isinstance(payload, dict) else getattr(payload, name, "")
        return str(value)

    return attribute
