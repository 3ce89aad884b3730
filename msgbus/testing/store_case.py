"""The tools of one check of an idempotency store."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import AsyncExitStack
from typing import Self

from msgbus._registry import store_class
from msgbus._url import BusURL
from msgbus.errors import StoreError
from msgbus.store import AdapterConfig, Claim, Completion, Store, Verdict
from msgbus.testing.harness import StoreHarness

__all__ = ["StoreCase"]


class StoreCase:
    """One run of one check; an async context manager that closes what was opened.

    Attributes:
        store: An open store.
    """

    store: Store

    def __init__(self, harness: StoreHarness) -> None:
        self.harness = harness
        self._prefix = f"kit-{secrets.token_hex(4)}"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.store = await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def open(self) -> Store:
        """Open another store with the same records."""
        url = BusURL.parse(self.harness.url)
        store = store_class(url)(url, AdapterConfig(clock=self.harness.clock, instance=secrets.token_hex(4)))
        self._stack.push_async_callback(store.aclose)
        await store.open()
        return store

    def seconds(self, count: float) -> float:
        """Return *count* seconds of a check in the harness's measure."""
        return count * self.harness.unit

    async def pass_time(self, count: float) -> None:
        """Let *count* seconds of a check pass at the store."""
        await self.harness.advance(self.seconds(count))

    def claim(
        self, key: str = "key", *, owner: str | None = None, scope: str = "scope", body: str = "body", lease: float = 60
    ) -> Claim:
        """Make a claim, with an owner of its own unless one is given; *lease* in seconds of a check."""
        digest = hashlib.blake2b(body.encode(), digest_size=16).hexdigest()
        return Claim(f"{self._prefix}|{scope}", key, owner or secrets.token_hex(8), digest, self.seconds(lease))

    def done(self, claim: Claim, reply: bytes | None = None, *, ttl: float = 600) -> Completion:
        """Make a completion; *ttl* in seconds of a check."""
        return Completion(claim, reply, self.seconds(ttl))

    async def ask(self, claim: Claim, *, of: Store | None = None) -> Verdict:
        """Claim one key."""
        (verdict,) = await (of or self.store).claim([claim])
        return verdict

    async def complete(self, claim: Claim, reply: bytes | None = None) -> StoreError | None:
        """Complete one claim."""
        (error,) = await self.store.complete([self.done(claim, reply)])
        return error
