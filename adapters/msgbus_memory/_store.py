"""The idempotency store of the memory adapter: a dictionary, and a heap of what expires when."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from msgbus.errors import ClaimLost, ClosedError, StoreError
from msgbus.store import AdapterConfig, BusURL, Claim, Completion, Done, Granted, InProgress, Mismatch, Store, Verdict
from msgbus_memory._adapter import name_of

__all__ = ["MemoryStore"]

_Place = tuple[str, str]


class _Record:
    """One key's state: in progress while it has an owner, done afterwards."""

    __slots__ = ("expires", "fingerprint", "owner", "reply")

    def __init__(self, fingerprint: str, owner: str, expires: float) -> None:
        self.fingerprint = fingerprint
        self.owner: str | None = owner
        self.expires = expires
        self.reply: bytes | None = None


class _Records:
    """The records of one store, shared by all `MemoryStore` objects of a name."""

    def __init__(self) -> None:
        self._table: dict[_Place, _Record] = {}
        self._expiry: list[tuple[float, int, _Place, _Record]] = []
        self._numbers = count()

    def claim(self, claim: Claim, now: float) -> Verdict:
        record = self._table.get((claim.scope, claim.key))
        if record is not None and record.expires > now:
            if record.fingerprint != claim.fingerprint:
                return Mismatch()
            if record.owner is None:
                return Done(record.reply)
            if record.owner != claim.owner:
                return InProgress(record.expires - now)
        self._add(claim, now)
        return Granted()

    def extend(self, claim: Claim, now: float) -> StoreError | None:
        record = self._own(claim)
        if record is None or record.expires <= now:
            return _lost(claim)
        record.expires = now + claim.lease
        return None

    def complete(self, completion: Completion, now: float) -> StoreError | None:
        claim = completion.claim
        record = self._table.get((claim.scope, claim.key))
        if record is None:
            # The lease ended, the record was purged, and nobody took the key: the work is done all the same.
            record = self._add(claim, now)
        elif record.owner != claim.owner:
            return _lost(claim)
        record.owner, record.reply, record.expires = None, completion.reply, now + completion.ttl
        return None

    def release(self, claim: Claim) -> None:
        if self._own(claim) is not None:
            del self._table[claim.scope, claim.key]

    def purge(self, limit: int, now: float) -> int:
        purged = 0
        while purged < limit and self._expiry and self._expiry[0][0] <= now:
            _, number, place, record = heappop(self._expiry)
            if self._table.get(place) is not record:
                continue
            if record.expires > now:
                heappush(self._expiry, (record.expires, number, place, record))
                continue
            del self._table[place]
            purged += 1
        return purged

    def _add(self, claim: Claim, now: float) -> _Record:
        place = claim.scope, claim.key
        record = self._table[place] = _Record(claim.fingerprint, claim.owner, now + claim.lease)
        heappush(self._expiry, (record.expires, next(self._numbers), place, record))
        return record

    def _own(self, claim: Claim) -> _Record | None:
        record = self._table.get((claim.scope, claim.key))
        return record if record is not None and record.owner == claim.owner else None


_NAMED: WeakValueDictionary[str, _Records] = WeakValueDictionary()


class MemoryStore(Store):
    """Idempotency records in the memory of this process."""

    name = "memory"

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        name = name_of(url)
        self._records = _NAMED.setdefault(name, _Records()) if name else _Records()
        self._open = False

    @property
    def raw(self) -> Any:
        """The records themselves."""
        return self._records

    async def open(self) -> None:
        """Open for use."""
        self._open = True

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Verdict]:
        """Claim keys."""
        now = self._now()
        return [self._records.claim(claim, now) for claim in claims]

    async def extend(self, claims: Sequence[Claim]) -> Sequence[StoreError | None]:
        """Keep claims."""
        now = self._now()
        return [self._records.extend(claim, now) for claim in claims]

    async def complete(self, completions: Sequence[Completion]) -> Sequence[StoreError | None]:
        """Mark claims done."""
        now = self._now()
        return [self._records.complete(completion, now) for completion in completions]

    async def release(self, claims: Sequence[Claim]) -> None:
        """Give claims up."""
        self._now()
        for claim in claims:
            self._records.release(claim)

    async def purge(self, limit: int) -> int:
        """Delete expired records."""
        return self._records.purge(limit, self._now())

    async def aclose(self) -> None:
        """Close. Records of a named store stay as long as another object uses it."""
        self._open = False

    def _now(self) -> float:
        if not self._open:
            raise ClosedError("the memory store is not open")
        return self.config.clock.now()


def _lost(claim: Claim) -> ClaimLost:
    return ClaimLost(f"key {claim.key!r} of {claim.scope!r} is not claimed by this owner any more")
