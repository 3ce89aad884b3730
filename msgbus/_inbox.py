"""The transactional inbox: records in the application's own database, committed together with the handler's effect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

from msgbus._backoff import RECONNECT
from msgbus._idempotency import Admission, Guard, Host, Idempotency, Undone
from msgbus._time import Clock
from msgbus._url import scrub
from msgbus.adapter import Health, Provision, Received
from msgbus.errors import ClaimLost, MsgbusError, StoreUnavailable, TopologyError
from msgbus.store import Claim, Done, Granted, InProgress, Mismatch, Statements, Transactions, Verdict

__all__ = ["Inbox", "InboxGuard"]

_log = logging.getLogger("msgbus")
_BUSY = InProgress(1.0)
"""Another transaction is at the key; nobody knows for how long."""


class Inbox:
    """Idempotency records in one database of the application.

    Args:
        transactions: The database.
        statements: Its SQL.
        clock: The bus's clock, for databases that have none.

    Attributes:
        health: Whether the last transaction could be begun.
        connection: The type of what handlers are given, once it is open.
    """

    connection: type[Any]

    def __init__(self, transactions: Transactions, statements: Statements, clock: Clock) -> None:
        self.health = Health(True)
        self.transactions = transactions
        self._statements = statements
        self._clock = clock

    async def open(self, provision: Provision) -> None:
        """Connect; create the tables where they are missing and may be created.

        Raises:
            TopologyError: They are missing and may not be created.
            StoreUnavailable: The database cannot be reached.
        """
        try:
            async with self.transactions.begin() as connection:
                self.connection = type(connection)
        except MsgbusError:
            raise
        except Exception as exc:
            raise StoreUnavailable(f"the database of Idempotency(within=) cannot be used: {_text(exc)}") from exc
        if provision is not Provision.SKIP and (problem := await self._missing()):
            if provision is Provision.VERIFY:
                raise TopologyError("the table msgbus_claim is missing, and nothing may be created") from problem
            await self._create()

    async def claim(self, connection: Any, claim: Claim) -> Verdict:
        """Claim a key inside a transaction."""
        rows = await self._execute(connection, self._statements.claim, claim)
        if not rows:
            return _BUSY
        owner, fingerprint, done, remaining, reply = rows[0]
        if fingerprint != claim.fingerprint:
            return Mismatch()
        if done:
            return Done(None if reply is None else bytes(reply))
        return Granted() if owner == claim.owner else InProgress(max(0.001, float(remaining)))

    async def complete(self, connection: Any, claim: Claim, reply: bytes | None, ttl: float) -> None:
        """Mark a key done inside the transaction.

        Raises:
            ClaimLost: Somebody else has it, which undoes the transaction.
        """
        if not await self._execute(connection, self._statements.complete, claim, reply=reply, ttl=ttl):
            raise ClaimLost(f"key {claim.key!r} of {claim.scope!r} was taken by another worker meanwhile")

    async def release(self, connection: Any, claim: Claim) -> None:
        """Give a key up inside the transaction."""
        await self._execute(connection, self._statements.release, claim)

    async def purge(self, limit: int) -> int:
        """Delete up to *limit* expired records; return how many.

        Raises:
            StoreUnavailable: The database cannot be reached.
        """
        try:
            async with self.transactions.begin() as connection:
                values = {"now": self._clock.now(), "limit": limit}
                return len(await self.transactions.execute(connection, self._statements.purge, values))
        except Exception as exc:
            raise StoreUnavailable(_text(exc)) from exc

    async def aclose(self) -> None:
        """Close what was opened for the inbox."""
        await self.transactions.aclose()

    async def _execute(self, connection: Any, sql: str, claim: Claim, **more: Any) -> list[tuple[Any, ...]]:
        values = {
            "scope": claim.scope,
            "key": claim.key,
            "owner": claim.owner,
            "fingerprint": claim.fingerprint,
            "lease": claim.lease,
            "now": self._clock.now(),
            **more,
        }
        return await self.transactions.execute(connection, sql, values)

    async def _missing(self) -> Exception | None:
        """Return why the tables cannot be read; each library has an error of its own for it."""
        try:
            async with self.transactions.begin() as connection:
                await self.transactions.execute(connection, self._statements.exists, {})
        except Exception as exc:  # noqa: BLE001 - looked at by the caller
            return exc
        return None

    async def _create(self) -> None:
        try:
            async with self.transactions.begin() as connection:
                for statement in self._statements.create:
                    await self.transactions.execute(connection, statement, {})
        except Exception as exc:
            if await self._missing():  # nobody else was faster
                raise TopologyError(f"the table msgbus_claim cannot be created: {_text(exc)}") from exc


class InboxGuard(Guard):
    """Idempotency for one subscription, inside the application's transactions.

    Args:
        options: The handler's wishes.
        scope: Who handles: channel and group.
        inbox: The records.
        host: The receiver.
    """

    settles_early: ClassVar[bool] = False

    def __init__(self, options: Idempotency, scope: str, inbox: Inbox, host: Host) -> None:
        super().__init__(options, scope)
        self._inbox = inbox
        self._host = host

    @asynccontextmanager
    async def admit(self, claims: Sequence[Claim], received: Sequence[Received]) -> AsyncIterator[Admission]:
        """Begin a transaction and claim in it; commit if something was granted and nothing was raised.

        A worker that dies takes its transaction, and the claims in it, with it. So there is no lease to wait for.
        """
        admission = await self._begin(claims)
        try:
            async with admission.stack:
                yield admission
                if not admission.granted:
                    raise _NothingToDo
        except _NothingToDo:
            pass
        except Exception as exc:
            if not self._inbox.transactions.is_lost(admission.transaction, exc):
                raise
            # Whether it was committed nobody knows, but the records do: the messages come again and ask.
            self._inbox.health = Health(False, _text(exc))
            raise Undone(f"the connection of a transaction broke: {_text(exc)}") from exc

    async def _begin(self, claims: Sequence[Claim]) -> _Admission:
        failures = 0
        self._host.pause_timeout(paused=True)  # waiting for the database is no part of the handler's time
        while True:
            stack = AsyncExitStack()
            try:
                transaction = await stack.enter_async_context(self._inbox.transactions.begin())
                admission = _Admission(self._inbox, stack, transaction, self.ttl)
                try:
                    await admission.claim(claims)
                except BaseException as exc:
                    await stack.__aexit__(type(exc), exc, exc.__traceback__)
                    raise
            except Exception as exc:  # noqa: BLE001 - no message is to blame for what happens before its handler
                failures += 1
                self._inbox.health = Health(False, _text(exc))
                if failures == 1:
                    _log.warning("no transaction can be begun, waiting for the database: %s", _text(exc))
                await asyncio.sleep(RECONNECT.delay(failures))
            else:
                self._inbox.health = Health(True)
                self._host.pause_timeout(paused=False)
                return admission


class _Admission(Admission):
    def __init__(self, inbox: Inbox, stack: AsyncExitStack, transaction: Any, ttl: float) -> None:
        self.stack = stack
        self.transaction = transaction
        self._inbox = inbox
        self._ttl = ttl

    async def claim(self, claims: Sequence[Claim]) -> None:
        """Claim one after the other, in one order for all, so that two batches do not wait for each other."""
        verdicts: dict[int, Verdict] = {}
        for index in sorted(range(len(claims)), key=lambda i: claims[i].key):
            verdicts[index] = await self._inbox.claim(self.transaction, claims[index])
        self.verdicts = [verdicts[index] for index in range(len(claims))]

    async def settle(self, done: Sequence[tuple[Claim, bytes | None]], failed: Sequence[Claim] = ()) -> None:
        """Complete and release, in the transaction."""
        for claim, reply in done:
            await self._inbox.complete(self.transaction, claim, reply, self._ttl)
        for claim in failed:
            await self._inbox.release(self.transaction, claim)


class _NothingToDo(Exception):
    """Rolls back: only duplicates, so nothing was changed."""


def _text(exc: Exception) -> str:
    return f"{type(exc).__name__}: {' '.join(scrub(str(exc)).split())}"
