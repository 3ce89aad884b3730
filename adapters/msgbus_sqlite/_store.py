"""The idempotency store: one row per key, every call one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from msgbus.errors import BrokerError, BrokerUnavailable, ClaimLost, ClosedError, StoreError, StoreUnavailable
from msgbus.store import (
    AdapterConfig,
    BusURL,
    Claim,
    Completion,
    Done,
    Granted,
    InProgress,
    Mismatch,
    Statements,
    Store,
    Verdict,
    parse_options,
)
from msgbus_sqlite._connection import open_database
from msgbus_sqlite._errors import translate
from msgbus_sqlite._inbox import STATEMENTS
from msgbus_sqlite._options import Options, database_path
from msgbus_sqlite._schema import STORE
from msgbus_sqlite._writer import Transaction, Writer

__all__ = ["SQLiteStore"]

_FIND = "SELECT owner, fingerprint, done, expires, reply FROM msgbus_claim WHERE scope = ? AND key = ?"
_TAKE = """
INSERT OR REPLACE INTO msgbus_claim (scope, key, owner, fingerprint, done, expires, reply)
VALUES (?, ?, ?, ?, 0, ?, NULL)
"""
_EXTEND = """
UPDATE msgbus_claim SET expires = ? WHERE scope = ? AND key = ? AND owner = ? AND done = 0 AND expires > ?
"""
# A claim whose lease ended may have been purged; if nobody has taken the key since, it is completed all the same.
_COMPLETE = """
INSERT INTO msgbus_claim (scope, key, owner, fingerprint, done, expires, reply) VALUES (?, ?, ?, ?, 1, ?, ?)
ON CONFLICT (scope, key) DO UPDATE SET done = 1, expires = excluded.expires, reply = excluded.reply
WHERE owner = excluded.owner AND done = 0
"""
_RELEASE = "DELETE FROM msgbus_claim WHERE scope = ? AND key = ? AND owner = ? AND done = 0"
_PURGE = """
DELETE FROM msgbus_claim WHERE (scope, key) IN (
    SELECT scope, key FROM msgbus_claim WHERE expires <= ? ORDER BY expires LIMIT ?)
"""


class SQLiteStore(Store):
    """Idempotency records in a SQLite file, the bus's own or another, shared by the processes of one machine."""

    name: ClassVar[str] = "sqlite"
    statements: ClassVar[Statements | None] = STATEMENTS

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        self._options = parse_options(url, Options)
        self._path = database_path(url)
        self._thread: Writer | None = None
        self._closed = False

    @property
    def raw(self) -> Path:
        """The database file's path: open a connection of your own to it."""
        return self._path

    async def open(self) -> None:
        """Open the file; create it and the table if they are missing."""
        if self._closed:
            raise ClosedError("the sqlite store is closed")
        if self._thread is not None:
            return
        writer = Writer(
            self._connect,
            self._translate,
            clock=self.config.clock,
            busy_timeout=self._options.busy_timeout,
            on_wake=lambda _: None,
            on_health=lambda _: None,
        )
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                await writer.start()
        except BaseException as exc:
            await writer.aclose()
            if isinstance(exc, TimeoutError):
                raise StoreUnavailable(
                    f"the SQLite database {self._path} could not be opened within {self.config.connect_timeout:g} s"
                ) from exc
            raise
        self._thread = writer

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Verdict]:
        """Claim keys in one transaction, one after the other."""
        return await self._writer.submit(lambda tx: [_claim(tx, claim) for claim in claims])

    async def extend(self, claims: Sequence[Claim]) -> Sequence[StoreError | None]:
        """Extend claims in one transaction."""
        return await self._writer.submit(lambda tx: [_extend(tx, claim) for claim in claims])

    async def complete(self, completions: Sequence[Completion]) -> Sequence[StoreError | None]:
        """Complete claims in one transaction."""
        return await self._writer.submit(lambda tx: [_complete(tx, completion) for completion in completions])

    async def release(self, claims: Sequence[Claim]) -> None:
        """Release claims in one transaction."""
        rows = [(claim.scope, claim.key, claim.owner) for claim in claims]
        await self._writer.submit(lambda tx: tx.db.executemany(_RELEASE, rows).rowcount)

    async def purge(self, limit: int) -> int:
        """Delete up to *limit* records that have expired, oldest first."""
        return await self._writer.submit(lambda tx: tx.db.execute(_PURGE, (tx.now, limit)).rowcount)

    async def aclose(self) -> None:
        """Close the file and end the thread."""
        self._closed = True
        writer, self._thread = self._thread, None
        if writer is not None:
            await writer.aclose()

    @property
    def _writer(self) -> Writer:
        if self._thread is None:
            raise ClosedError(f"the sqlite store is {'closed' if self._closed else 'not open'}")
        return self._thread

    def _connect(self) -> sqlite3.Connection:
        return open_database(self._path, self._options, STORE, create=True)

    def _translate(self, exc: Exception) -> Exception:
        error = translate(exc, self._path)
        if not isinstance(error, BrokerError):
            return error
        unavailable = isinstance(error, BrokerUnavailable)
        stored = (StoreUnavailable if unavailable else StoreError)(str(error))
        stored.__cause__ = exc
        return stored


def _claim(tx: Transaction, claim: Claim) -> Verdict:
    found = tx.db.execute(_FIND, (claim.scope, claim.key)).fetchall()
    if found:
        owner, fingerprint, done, expires, reply = found[0]
        if expires > tx.now:
            if fingerprint != claim.fingerprint:
                return Mismatch()
            if done:
                return Done(reply)
            if owner != claim.owner:
                return InProgress(expires - tx.now)
    until = tx.now + claim.lease
    tx.db.execute(_TAKE, (claim.scope, claim.key, claim.owner, claim.fingerprint, until))
    return Granted()


def _extend(tx: Transaction, claim: Claim) -> StoreError | None:
    values = (tx.now + claim.lease, claim.scope, claim.key, claim.owner, tx.now)
    return _unless_lost(claim, tx.db.execute(_EXTEND, values))


def _complete(tx: Transaction, completion: Completion) -> StoreError | None:
    claim, until = completion.claim, tx.now + completion.ttl
    values = (claim.scope, claim.key, claim.owner, claim.fingerprint, until, completion.reply)
    return _unless_lost(claim, tx.db.execute(_COMPLETE, values))


def _unless_lost(claim: Claim, changed: sqlite3.Cursor | Any) -> StoreError | None:
    if changed.rowcount > 0:
        return None
    return ClaimLost(f"the claim on key {claim.key!r} in {claim.scope!r} is another worker's by now")
