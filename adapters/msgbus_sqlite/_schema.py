"""The tables.

A message's bytes are written once, to ``msgbus_message``, and never touched again until it is deleted. What changes
is a narrow row elsewhere, so that leasing a batch dirties few pages whatever the size of the bodies:

- ``msgbus_entry``: a message in no lane, at its *place* (a source, or the dead letters of one). Its ``visible_at``
  is 0 when it is ready, else the moment it comes due or its lease ends. The primary key serves the two questions that
  are asked: the first ready ones in order, and the next moment something happens (the least ``visible_at``).
- ``msgbus_keyed`` and ``msgbus_lane``: on a keyed source, the messages of each key in order, and one row per key that
  says when, and by whom, the key may be consumed (see `_lanes`).

A source's place is twice its row's id, the place of its dead letters one more.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from msgbus.errors import ConfigError, TopologyError

__all__ = ["BUS", "STORE", "Part", "ensure_tables", "idempotent"]


@dataclass(frozen=True, slots=True)
class Part:
    """A set of tables with a version of its own (the bus's, the store's), so that both fit into one file.

    Attributes:
        name: Its row in ``msgbus_schema``.
        version: Raised with every change of the tables.
        tables: The statements that create them.
    """

    name: str
    version: int
    tables: tuple[str, ...]


_VERSIONS = """
CREATE TABLE IF NOT EXISTS msgbus_schema (part TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID
"""

BUS = Part(
    "bus",
    1,
    (
        # One row: the next message id (never used twice, so that pages of `browse` and receipts stay true), and a
        # number that grows with every change of msgbus_source, so that other processes see it.
        "CREATE TABLE msgbus_meta (id INTEGER PRIMARY KEY, next_id INTEGER NOT NULL, generation INTEGER NOT NULL)",
        "INSERT INTO msgbus_meta VALUES (1, 1, 1)",
        # A queue is one row. A topic is one row with an empty grp (it can be published to) and one per group.
        # `expires` is set for reply queues only: then their process is taken for dead.
        """CREATE TABLE msgbus_source (
            id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL, grp TEXT NOT NULL,
            keyed INTEGER NOT NULL, expires REAL, UNIQUE (kind, name, grp))""",
        """CREATE TABLE msgbus_message (
            id INTEGER PRIMARY KEY, channel TEXT NOT NULL, key TEXT, time REAL NOT NULL, headers TEXT NOT NULL,
            body BLOB NOT NULL)""",
        """CREATE TABLE msgbus_entry (
            place INTEGER NOT NULL, visible_at REAL NOT NULL, id INTEGER NOT NULL, token INTEGER,
            deliveries INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (place, visible_at, id)) WITHOUT ROWID""",
        """CREATE TABLE msgbus_keyed (
            place INTEGER NOT NULL, key TEXT NOT NULL, id INTEGER NOT NULL, due REAL NOT NULL DEFAULT 0, token INTEGER,
            deliveries INTEGER NOT NULL DEFAULT 0, dead INTEGER, PRIMARY KEY (place, key, id)) WITHOUT ROWID""",
        "CREATE INDEX msgbus_parked ON msgbus_keyed (place, key, dead) WHERE dead IS NOT NULL",
        """CREATE TABLE msgbus_lane (
            place INTEGER NOT NULL, key TEXT NOT NULL, visible_at REAL NOT NULL DEFAULT 0, head INTEGER NOT NULL,
            token INTEGER, held INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (place, key)) WITHOUT ROWID""",
        "CREATE INDEX msgbus_lane_ready ON msgbus_lane (place, visible_at, head)",
    ),
)

STORE = Part(
    "store",
    1,
    (
        """CREATE TABLE msgbus_claim (
            scope TEXT NOT NULL, key TEXT NOT NULL, owner TEXT NOT NULL, fingerprint TEXT NOT NULL,
            done INTEGER NOT NULL, expires REAL NOT NULL, reply BLOB, PRIMARY KEY (scope, key)) WITHOUT ROWID""",
        "CREATE INDEX msgbus_claim_expires ON msgbus_claim (expires)",
    ),
)


def idempotent(part: Part) -> tuple[str, ...]:
    """Return the statements that create *part* where it is missing, and change nothing where it is there."""
    tables = [
        re.sub(r"^CREATE (TABLE|INDEX) (?!IF)", r"CREATE \1 IF NOT EXISTS ", statement.strip())
        for statement in (_VERSIONS, *part.tables)
    ]
    version = f"INSERT OR IGNORE INTO msgbus_schema VALUES ('{part.name}', {part.version})"  # noqa: S608 - our own
    return (*tables, version)


def ensure_tables(db: sqlite3.Connection, path: Path, part: Part, *, create: bool) -> None:
    """See to it that *part*'s tables are there.

    Raises:
        ConfigError: They were made by a newer msgbus.
        TopologyError: They are missing and *create* is false.
    """
    if not _is_current(db, path, part):
        if not create:
            raise TopologyError(f"{path} has no msgbus tables ({part.name}), and nothing may be created (verify)")
        db.execute("BEGIN IMMEDIATE")
        try:
            if not _is_current(db, path, part):  # no other process was faster
                _create(db, part)
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def _is_current(db: sqlite3.Connection, path: Path, part: Part) -> bool:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'msgbus_schema'").fetchall():
        return False
    rows = db.execute("SELECT version FROM msgbus_schema WHERE part = ?", (part.name,)).fetchall()
    if rows and rows[0][0] > part.version:
        raise ConfigError(
            f"{path} was made by a newer msgbus: its {part.name} tables have version {rows[0][0]}, "
            f"this msgbus knows {part.version}; upgrade msgbus or use another file"
        )
    return bool(rows)


def _create(db: sqlite3.Connection, part: Part) -> None:
    db.execute(_VERSIONS)
    for statement in part.tables:
        db.execute(statement)
    db.execute("INSERT INTO msgbus_schema VALUES (?, ?)", (part.name, part.version))
