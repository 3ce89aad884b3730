"""The contract for idempotency stores: who has handled, or is handling, which key.

A key goes through two states. *In progress*: one worker holds a claim on it, with a lease (so that a worker that
dies does not block the key for ever) and an owner token (so that a worker that lost its claim cannot harm the
next one's). *Done*: handled, with the stored reply, until its time to live is over. A claim whose handler failed is
released, so that the next delivery is handled. A key is never marked done before its handler has succeeded.

A store package imports `msgbus.store` and `msgbus.errors` only and registers its class in the entry-point group
``msgbus.stores`` under its URL scheme. `msgbus.testing.StoreContract` proves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from msgbus._time import Clock, SystemClock
from msgbus._url import BusURL, parse_options
from msgbus.adapter import AdapterConfig, Provision
from msgbus.errors import StoreError

__all__ = [
    "AdapterConfig",
    "BusURL",
    "Claim",
    "Clock",
    "Completion",
    "Done",
    "Granted",
    "InProgress",
    "Mismatch",
    "Provision",
    "Statements",
    "Store",
    "SystemClock",
    "Transactions",
    "Verdict",
    "parse_options",
]


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to handle a key.

    Attributes:
        scope: Who handles: channel and group. The same key in another scope is independent.
        key: The idempotency key, at most 512 characters.
        owner: A token unique to this claim; needed to extend, complete or release it.
        fingerprint: A digest of the payload; the same key with another one is a `Mismatch`.
        lease: Seconds until the claim ends by itself, by the store's own clock.
    """

    scope: str
    key: str
    owner: str
    fingerprint: str
    lease: float


@dataclass(frozen=True, slots=True)
class Completion:
    """A claim whose handler succeeded.

    Attributes:
        claim: The claim.
        reply: What duplicates are answered with, or None.
        ttl: Seconds for which the key stays done.
    """

    claim: Claim
    reply: bytes | None
    ttl: float


@dataclass(frozen=True, slots=True)
class Granted:
    """The key is the claimant's to handle."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another worker is handling the key.

    Attributes:
        remaining: Seconds until that claim's lease ends unless extended.
    """

    remaining: float


@dataclass(frozen=True, slots=True)
class Done:
    """The key was handled.

    Attributes:
        reply: What its handler's reply was, or None.
    """

    reply: bytes | None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key was used with another payload."""


Verdict = Granted | InProgress | Done | Mismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements:
    """The SQL of a store whose records can be written inside an application's own transactions.

    It is run on the application's connection, whichever library that is of: ``:name`` stands for a parameter.

    Attributes:
        create: Create the tables; each changes nothing where its table is there.
        exists: Fails where the tables are missing.
        claim: Claim ``:key`` of ``:scope`` for ``:owner`` with ``:fingerprint`` and ``:lease``. Gives the record as it
            is then: owner, fingerprint, done, seconds that remain, reply; no row if another transaction is at it.
        complete: Mark the claim done with ``:reply`` for ``:ttl`` seconds; gives a row unless the claim was lost.
        release: Delete the claim.
        purge: Delete up to ``:limit`` expired records; gives a row for each.

    All but the first two may use ``:now``, the time of the bus's clock, where the database has none.
    """

    create: tuple[str, ...]
    exists: str
    claim: str
    complete: str
    release: str
    purge: str


class Transactions(ABC):
    """Transactions of an application's database, for `Idempotency(within=)`.

    msgbus brings those of psycopg, SQLAlchemy, `sqlite3` and aiosqlite; give an object of your own class for another
    library. Used by one event loop; several transactions may be open at once.
    """

    @property
    @abstractmethod
    def dialect(self) -> str:
        """The database: the URL scheme of the store whose tables are used, ``postgresql`` or ``sqlite``."""

    async def open(self) -> None:  # noqa: B027 - most have nothing to do
        """Get ready. Called once, before anything else."""

    @abstractmethod
    def begin(self) -> AbstractAsyncContextManager[Any]:
        """Begin a transaction; give the connection that handlers take. Commits at the end, or rolls back on errors."""

    @abstractmethod
    async def execute(self, connection: Any, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement of `Statements` inside the transaction; return its rows.

        Args:
            connection: What `begin` gave.
            sql: The statement; ``:name`` stands for a parameter.
            values: The parameters by name, and perhaps some that the statement does not have.
        """

    @abstractmethod
    def is_lost(self, connection: Any, error: BaseException) -> bool:
        """Tell whether *error* happened because the connection broke, so that it says nothing about the message."""

    async def aclose(self) -> None:  # noqa: B027 - as above
        """Close what was opened here."""


class Store(ABC):
    """One idempotency store. Used by one event loop; all methods may be called concurrently.

    Batched, because every store is fast only in batches: the core gathers concurrent calls. Items are independent;
    when one fails the others still take effect. All raise `StoreUnavailable` when the store cannot be reached.
    """

    name: ClassVar[str]
    """The store's name in errors: its URL scheme."""
    statements: ClassVar[Statements | None] = None
    """What `Idempotency(within=)` uses, where the store is a SQL database."""

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        self.url = url
        self.config = config

    @property
    def raw(self) -> Any:
        """The client library's own connection or client."""
        return None

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create the store's tables where it has any."""

    @abstractmethod
    async def claim(self, claims: Sequence[Claim]) -> Sequence[Verdict]:
        """Claim keys; return each one's verdict in order.

        A claim is granted when the key is new, or its record has expired, or its lease has ended, or the same
        owner claims again. Of any number of concurrent claims for one key, one is granted.
        """

    @abstractmethod
    async def extend(self, claims: Sequence[Claim]) -> Sequence[StoreError | None]:
        """Keep claims for ``claim.lease`` seconds more from now; `ClaimLost` for each that is not ours any more."""

    @abstractmethod
    async def complete(self, completions: Sequence[Completion]) -> Sequence[StoreError | None]:
        """Mark claims done; `ClaimLost` for each that another owner has claimed or completed meanwhile.

        A claim whose lease has ended but that nobody else took is completed all the same.
        """

    @abstractmethod
    async def release(self, claims: Sequence[Claim]) -> None:
        """Give claims up so that the next delivery is handled; those that are not ours any more are left alone."""

    @abstractmethod
    async def purge(self, limit: int) -> int:
        """Delete up to *limit* expired records; return how many were deleted. Stores that expire by themselves: 0."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close. Idempotent."""
