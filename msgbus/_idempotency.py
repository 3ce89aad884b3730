"""Handle every message once: which key a message has, and what a guard does with it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from msgbus._message import ID, new_id
from msgbus._time import Duration, seconds
from msgbus._within import transactions_for
from msgbus.adapter import Received
from msgbus.errors import Reject
from msgbus.store import Claim, Granted, Verdict

__all__ = ["Admission", "Guard", "Host", "Idempotency", "Undone"]

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
        within: The application's database: a psycopg ``AsyncConnectionPool``, a SQLAlchemy ``AsyncEngine`` or
            ``async_sessionmaker``, a `msgbus.store.Transactions`, or a function that returns one of these or a
            `sqlite3` or aiosqlite connection, called when the bus is opened. Each message is handled inside a
            transaction of it, in which the record is written too: effect and record are committed together. The
            handler takes the connection (or session) as a parameter, by annotation. No other store is needed.
    """

    ttl: Duration = 86_400.0
    key: str | Callable[[Any], str] | None = None
    lease: Duration = 60.0
    on_store_error: Literal["wait", "handle"] = "wait"
    within: Any = None

    def __post_init__(self) -> None:
        if self.on_store_error not in ("wait", "handle"):
            raise ValueError(f"Idempotency(on_store_error=) is 'wait' or 'handle', got {self.on_store_error!r}")
        object.__setattr__(self, "ttl", seconds(self.ttl, "Idempotency(ttl=)"))
        object.__setattr__(self, "lease", seconds(self.lease, "Idempotency(lease=)"))
        if not self.lease:
            raise ValueError("Idempotency(lease=) must be more than 0 seconds")
        if self.within is not None:
            transactions_for(self.within)  # refuses what it does not know
            if self.on_store_error == "handle":
                raise ValueError("Idempotency(on_store_error='handle') makes no sense with within=: there is no other")


class Undone(Exception):
    """What was done did not take effect, or nobody knows: the message is not to blame, and is to come again."""


class Admission(ABC):
    """What a guard says to some messages, and what it is told about them afterwards.

    Attributes:
        verdicts: One for each claim.
        transaction: What the handlers take as their connection, or None.
    """

    verdicts: Sequence[Verdict]
    transaction: Any = None

    @property
    def granted(self) -> bool:
        """Whether anything is to be handled."""
        return any(isinstance(verdict, Granted) for verdict in self.verdicts)

    @abstractmethod
    async def settle(self, done: Sequence[tuple[Claim, bytes | None]], failed: Sequence[Claim] = ()) -> None:
        """Mark claims done, with their replies; give up the failed ones."""


class Host(Protocol):
    """What a guard needs of the receiver whose messages it guards."""

    def pause_timeout(self, *, paused: bool) -> None:
        """Stop the clock of the worker whose task this is, or set it to its handler's full time again."""
        ...

    def lose(self, received: Received) -> None:
        """Cancel the message's handler: the message is somebody else's."""
        ...


class Guard(ABC):
    """Idempotency for one subscription.

    Args:
        options: The handler's wishes.
        scope: Who handles: channel and group.
    """

    settles_early: ClassVar[bool] = True
    """Whether a handler may settle its delivery before it ends."""

    def __init__(self, options: Idempotency, scope: str) -> None:
        self._scope = scope
        self._options = options
        self._key = _key_function(options.key)
        self.ttl = seconds(options.ttl, "ttl")
        self.lease = seconds(options.lease, "lease")

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
        if "\0" in key or not _encodable(key):
            raise Reject(f"an idempotency key is text without NUL and lone surrogates, got {key!r:.80}")
        fingerprint = hashlib.blake2b(received.body, digest_size=16).hexdigest()
        return Claim(self._scope, key, new_id(), fingerprint, self.lease)

    @abstractmethod
    def admit(self, claims: Sequence[Claim], received: Sequence[Received]) -> AbstractAsyncContextManager[Admission]:
        """Ask for the messages' claims; those that are granted and not settled when it ends are given up.

        Raises:
            Undone: What was done inside did not take effect, or nobody knows; the messages are to come again.
        """

    @property
    def heartbeat(self) -> Callable[[], Awaitable[None]] | None:
        """What is to be called three times per lease, or None."""
        return None


def _key_function(key: str | Callable[[Any], str] | None) -> Callable[[Any], str] | None:
    if not isinstance(key, str):
        return key
    name = key

    def attribute(payload: Any) -> str:
        value = payload.get(name, "") if isinstance(payload, dict) else getattr(payload, name, "")
        return str(value)

    return attribute


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
