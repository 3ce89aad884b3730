"""What the client raises, as msgbus's errors."""

from __future__ import annotations

from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

from msgbus.errors import AccessDenied, MsgbusError, StoreUnavailable
from msgbus.store import BusURL

__all__ = ["FAILURES", "refused", "unavailable"]

FAILURES = (RedisError, OSError)
"""All that a call can raise. `redis.exceptions` has a root of its own; connecting may raise what the system says."""

_DENIED = (AuthenticationError, AuthorizationError, NoPermissionError)


def unavailable(exc: Exception, url: BusURL) -> StoreUnavailable:
    """Return the error of a call.

    Whatever Redis says (loading, read-only, out of memory, not allowed any more), the message is not to blame: it
    waits.
    """
    return StoreUnavailable(f"the idempotency store {url} is unavailable: {_text(exc)}")


def refused(exc: Exception, url: BusURL) -> MsgbusError:
    """Return the error of a first connection."""
    if isinstance(exc, _DENIED):
        return AccessDenied(f"the idempotency store {url} refused the credentials: {_text(exc)}")
    return unavailable(exc, url)


def _text(exc: Exception) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
