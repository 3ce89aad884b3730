"""The idempotency store: one row per key, every call one statement."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import psycopg
from psycopg import AsyncConnection, errors
from psycopg_pool import AsyncConnectionPool

from msgbus.errors import ClaimLost, ClosedError, StoreError, TopologyError
from msgbus.store import (
    AdapterConfig,
    BusURL,
    Claim,
    Completion,
    Done,
    Granted,
    InProgress,
    Mismatch,
    Provision,
    Statements,
    Store,
    Verdict,
    parse_options,
)
from msgbus_postgres._errors import refused, unavailable
from msgbus_postgres._options import Options, conninfo
from msgbus_postgres._sql import CLAIM, COMPLETE, EXTEND, PURGE, RELEASE, STATEMENTS

__all__ = ["PostgresStore"]

_Place = tuple[str, str]


class PostgresStore(Store):
    """Idempotency records in a PostgreSQL database."""

    name: ClassVar[str] = "postgresql"
    statements: ClassVar[Statements | None] = STATEMENTS

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        self._options = parse_options(url, Options)
        self._conninfo = conninfo(url, self._options, config)
        self._pool: AsyncConnectionPool | None = None
        self._closed = False

    @property
    def raw(self) -> AsyncConnectionPool | None:
        """The connection pool; None while the store is not open."""
        return self._pool

    async def open(self) -> None:
        """Connect, and create the table where it is missing and may be created."""
        if self._closed:
            raise ClosedError("the postgresql store is closed")
        if self._pool is not None:
            return
        settings: dict[str, Any] = {"autocommit": True}
        if not self._options.prepare:
            settings["prepare_threshold"] = None
        try:
            # Not by the pool, which tells nobody why it cannot connect.
            async with asyncio.timeout(self.config.connect_timeout):
                async with await AsyncConnection.connect(self._conninfo, **settings) as connection:
                    await self._prepare(connection)
        except TimeoutError as exc:
            raise unavailable(TimeoutError(f"no answer in {self.config.connect_timeout:g} s"), self.url) from exc
        except psycopg.Error as exc:
            raise refused(exc, self.url) from exc
        pool = AsyncConnectionPool(
            self._conninfo,
            kwargs=settings,
            min_size=0,
            max_size=self._options.pool_size,
            timeout=self._options.timeout,
            # After that the next call connects at once; the pool itself would wait up to minutes between two tries.
            reconnect_timeout=self._options.timeout / 2,
            name="msgbus-store",
            open=False,
        )
        await pool.open()
        self._pool = pool

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Verdict]:
        """Claim keys in one statement; of several claims for one key the first one counts."""
        first: dict[_Place, Claim] = {}
        for claim in claims:
            first.setdefault((claim.scope, claim.key), claim)
        columns = zip(*((c.scope, c.key, c.owner, c.fingerprint, c.lease) for c in first.values()), strict=True)
        rows = await self._run(CLAIM, columns) if claims else ()
        states = {(scope, key): state for scope, key, *state in rows}
        return [_verdict(claim, *states[claim.scope, claim.key]) for claim in claims]

    async def extend(self, claims: Sequence[Claim]) -> Sequence[StoreError | None]:
        """Extend claims in one statement."""
        if not claims:
            return []
        columns = zip(*((c.scope, c.key, c.owner, c.lease) for c in claims), strict=True)
        return _unless_lost(claims, set(await self._run(EXTEND, columns)))

    async def complete(self, completions: Sequence[Completion]) -> Sequence[StoreError | None]:
        """Complete claims in one statement (several if one key is completed by several owners)."""
        kept: set[tuple[Any, ...]] = set()
        for batch in _without_repetitions(completions):
            rows = ((d.claim.scope, d.claim.key, d.claim.owner, d.claim.fingerprint, d.ttl, d.reply) for d in batch)
            kept.update(await self._run(COMPLETE, zip(*rows, strict=True)))
        return _unless_lost([completion.claim for completion in completions], kept)

    async def release(self, claims: Sequence[Claim]) -> None:
        """Release claims in one statement."""
        if claims:
            await self._run(RELEASE, zip(*((c.scope, c.key, c.owner) for c in claims), strict=True))

    async def purge(self, limit: int) -> int:
        """Delete up to *limit* records that have expired, oldest first."""
        _, deleted = await self._execute(PURGE, [limit])
        return deleted

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def _prepare(self, connection: AsyncConnection) -> None:
        if self.config.provision is Provision.SKIP:
            return
        try:
            await connection.execute(STATEMENTS.exists.encode())
        except errors.UndefinedTable as exc:
            if self.config.provision is Provision.VERIFY:
                raise TopologyError(
                    f"{self.url} has no table msgbus_claim, and nothing may be created (verify)"
                ) from exc
        else:
            return
        for statement in STATEMENTS.create:
            # Another process may be faster with this one: IF NOT EXISTS looks before it waits, and which error the
            # server raises then is a matter of moments. The next statement is still to be run: that one may have died.
            with suppress(errors.UniqueViolation, errors.DuplicateObject, errors.DuplicateTable):
                await connection.execute(statement.encode())
        await connection.execute(STATEMENTS.exists.encode())

    async def _run(self, statement: str, columns: Iterator[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Run a statement that takes one array per column; return the rows it gives."""
        rows, _ = await self._execute(statement, [list(column) for column in columns])
        return rows

    async def _execute(self, statement: str, values: list[Any]) -> tuple[list[tuple[Any, ...]], int]:
        """Run a statement; return its rows, and how many it concerned."""
        if self._pool is None:
            raise ClosedError(f"the postgresql store is {'closed' if self._closed else 'not open'}")
        try:
            async with self._pool.connection() as connection:
                cutting = asyncio.get_running_loop().call_later(self._options.timeout, _cut, connection)
                try:
                    cursor = await connection.execute(statement.encode(), values)
                    return await cursor.fetchall() if cursor.description else [], cursor.rowcount
                finally:
                    cutting.cancel()
        except psycopg.Error as exc:
            raise unavailable(exc, self.url) from exc


def _cut(connection: AsyncConnection) -> None:
    """Break a connection on which nothing comes, so that whoever waits for it gets an error.

    Cancelling the call instead would ask the server to cancel it, and wait for its answer.
    """
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def _verdict(claim: Claim, owner: str, fingerprint: str, done: bool, remaining: float, reply: bytes | None) -> Verdict:
    if fingerprint != claim.fingerprint:
        return Mismatch()
    if done:
        return Done(reply)
    return Granted() if owner == claim.owner else InProgress(max(0.001, remaining))


def _without_repetitions(completions: Sequence[Completion]) -> Iterator[list[Completion]]:
    """Yield batches in which no key is twice: a statement may touch a row only once."""
    waiting = list(completions)
    while waiting:
        batch: dict[_Place, Completion] = {}
        again: list[Completion] = []
        for done in waiting:
            place = done.claim.scope, done.claim.key
            (again.append(done) if place in batch else batch.setdefault(place, done))
        yield list(batch.values())
        waiting = again


def _unless_lost(claims: Sequence[Claim], kept: set[tuple[Any, ...]]) -> list[StoreError | None]:
    return [
        None
        if (claim.scope, claim.key, claim.owner) in kept
        else ClaimLost(f"the claim on key {claim.key!r} in {claim.scope!r} is another worker's by now")
        for claim in claims
    ]
