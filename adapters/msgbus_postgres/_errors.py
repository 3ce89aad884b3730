"""What psycopg raises, as msgbus's errors."""

from __future__ import annotations

import psycopg
from psycopg import errors

from msgbus.errors import AccessDenied, ConfigError, MsgbusError, StoreUnavailable
from msgbus.store import BusURL

__all__ = ["refused", "unavailable"]

_DENIED = (errors.InvalidAuthorizationSpecification, errors.InsufficientPrivilege)
_WRONG = (errors.InvalidCatalogName, errors.UndefinedObject, errors.InvalidParameterValue)
_DENIALS = ("password authentication failed", "no password supplied", "pg_hba.conf", "role ", "authentication failed")


def unavailable(exc: Exception, url: BusURL) -> StoreUnavailable:
    """Return the error of a call.

    Whatever PostgreSQL says (shutting down, read-only, disk full, no such table any more), the message is not to
    blame: it waits.
    """
    return StoreUnavailable(f"the idempotency store {url} is unavailable: {_text(exc)}")


def refused(exc: Exception, url: BusURL) -> MsgbusError:
    """Return the error of a first connection."""
    text = _text(exc)
    # A refused connection attempt has no SQLSTATE in libpq, so its text is looked at.
    if isinstance(exc, _DENIED) or any(sign in text for sign in _DENIALS):
        return AccessDenied(f"the idempotency store {url} refused the credentials: {text}")
    if isinstance(exc, _WRONG) or (isinstance(exc, psycopg.OperationalError) and "does not exist" in text):
        return ConfigError(f"the idempotency store {url} cannot be used: {text}")
    return unavailable(exc, url)


def _text(exc: Exception) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
