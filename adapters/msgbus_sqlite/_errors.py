"""What `sqlite3` raises, as msgbus's errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from msgbus.errors import AccessDenied, BrokerError, BrokerUnavailable, ConfigError, MsgbusError

__all__ = ["is_busy", "translate"]

_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "another process kept it locked for longer than 'busy_timeout'",
    sqlite3.SQLITE_LOCKED: "it is locked",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk failed",
    sqlite3.SQLITE_CANTOPEN: "the file or its directory cannot be opened",
    sqlite3.SQLITE_PROTOCOL: "its lock could not be had",
    sqlite3.SQLITE_NOMEM: "memory is exhausted",
    sqlite3.SQLITE_INTERRUPT: "the call was interrupted",
}
_DENIED = {
    sqlite3.SQLITE_PERM: "the process may not use it",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only",
    sqlite3.SQLITE_AUTH: "the process may not use it",
}
_WRONG_FILE = {
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
}


def is_busy(exc: sqlite3.Error) -> bool:
    """Tell whether *exc* says that another connection holds the lock."""
    return _code(exc) == sqlite3.SQLITE_BUSY


def translate(exc: Exception, path: Path) -> MsgbusError:
    """Return the error of msgbus, caused by *exc*, that says what it means for the database at *path*."""
    if isinstance(exc, MsgbusError):
        return exc
    error = _translated(exc, path)
    error.__cause__ = exc
    return error


def _translated(exc: Exception, path: Path) -> MsgbusError:
    code = _code(exc)
    if code in _UNAVAILABLE:
        return BrokerUnavailable(f"the SQLite database {path} is unavailable: {_UNAVAILABLE[code]} ({exc})")
    if code in _DENIED:
        return AccessDenied(f"the SQLite database {path} cannot be written: {_DENIED[code]} ({exc})")
    if code in _WRONG_FILE:
        return ConfigError(f"{path} cannot be used as a SQLite database: {_WRONG_FILE[code]} ({exc})")
    return BrokerError(f"the SQLite database {path} failed: {type(exc).__name__}: {exc}")


def _code(exc: Exception) -> int:
    """Return the primary result code: the extended one's low byte; -1 when SQLite itself did not fail."""
    code = getattr(exc, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else -1
