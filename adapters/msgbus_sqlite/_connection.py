"""How a connection is opened, and how one waits for other processes' locks."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from msgbus.errors import AccessDenied, ConfigError, TopologyError
from msgbus_sqlite._errors import is_busy
from msgbus_sqlite._options import Options
from msgbus_sqlite._schema import Part, ensure_tables

__all__ = ["open_database", "patiently"]

T = TypeVar("T")

_PAUSE = (0.0002, 0.005)
"""Shortest and longest pause between two tries for a lock, in seconds. SQLite's own pauses grow to 100 ms: among
eight busy processes that made the unluckiest call wait for 0.9 s instead of 0.3 s."""


def open_database(path: Path, options: Options, part: Part, *, create: bool) -> sqlite3.Connection:
    """Return a connection to the database at *path* with the tables of *part* in it.

    Args:
        path: The file.
        options: The URL's.
        part: The tables needed.
        create: Whether to create the file and the tables if they are missing.

    Raises:
        ConfigError: The path cannot be a database, or its tables were made by a newer msgbus.
        AccessDenied: The process may not use the file.
        TopologyError: Something is missing and *create* is false.
        sqlite3.Error: Anything else; the caller translates.
    """
    _check_path(path, create=create)
    # SQLite does not wait for another process that is about to make the file a write-ahead one.
    return patiently(lambda: _open(path, options, part, create=create), options.busy_timeout)


def patiently(call: Callable[[], T], timeout: float) -> T:
    """Return what *call* returns, calling it again for up to *timeout* seconds while another process has the lock."""
    deadline = time.monotonic() + timeout
    pause, longest = _PAUSE
    while True:
        try:
            return call()
        except sqlite3.OperationalError as exc:
            if not is_busy(exc) or time.monotonic() >= deadline:
                raise
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - not for secrets
        pause = min(2 * pause, longest)


def _open(path: Path, options: Options, part: Part, *, create: bool) -> sqlite3.Connection:
    uri = f"file:{quote(str(path))}?mode={'rwc' if create else 'rw'}"
    db = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, cached_statements=256)
    try:
        if (mode := db.execute("PRAGMA journal_mode=WAL").fetchone()[0]) != "wal":
            raise ConfigError(f"{path} cannot be used: its file system has no write-ahead log (journal mode {mode!r})")
        db.execute(f"PRAGMA synchronous={options.synchronous}")
        # Debian builds overwrite every deleted row with zeros, which doubles the cost of an ack.
        db.execute("PRAGMA secure_delete=OFF")
        db.execute("PRAGMA cache_size=-16000")  # KiB; the default of 2 MB does not hold a busy queue's pages
        db.execute("PRAGMA journal_size_limit=67108864")  # a log that a long reader let grow shrinks again
        ensure_tables(db, path, part, create=create)
    except BaseException:
        db.close()
        raise
    return db


def _check_path(path: Path, *, create: bool) -> None:
    if sqlite3.sqlite_version_info < (3, 38):
        raise ConfigError(f"the sqlite adapter needs SQLite 3.38 or newer, this Python has {sqlite3.sqlite_version}")
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a directory; name a file in it")
        if not path.parent.is_dir():
            raise ConfigError(f"{path} cannot be opened: there is no directory {path.parent}")
        if not create and not path.exists():
            raise TopologyError(f"the SQLite database {path} does not exist, and nothing may be created (verify)")
    except OSError as exc:  # a name too long, or a directory that may not be entered
        raise AccessDenied(f"{path} cannot be opened: {exc.strerror}") from exc
