"""What exists: declaring it, and finding where a message goes."""

from __future__ import annotations

import re
import sqlite3
from typing import NamedTuple

from msgbus.adapter import Address, Kind, Provision, Source, Topology, is_pattern, pattern_regex
from msgbus.errors import TopologyError
from msgbus_sqlite._writer import Transaction

__all__ = ["Place", "Routes", "add_reply", "declare", "drop", "drop_reply", "find", "keep_reply", "sweep_replies"]

_REPLY_LIFE = 600.0
"""Seconds after which the reply queue of a process that has not been heard of is dropped."""


class Place(NamedTuple):
    """Where a source's messages are.

    Attributes:
        id: The place in the tables (even; the place of the dead letters is one more).
        keyed: Whether the messages of one key have a lane.
    """

    id: int
    keyed: bool


def declare(tx: Transaction, topology: Topology, provision: Provision) -> None:
    """Create what is missing of *topology*, or verify that nothing is.

    Raises:
        TopologyError: Something is missing (verify) or differs.
    """
    if provision is Provision.CREATE:
        sweep_replies(tx)
    wanted: dict[tuple[str, str, str], bool] = {}
    for address in topology.addresses:
        _want(wanted, address, "")
    for source in topology.sources:
        if source.address.kind is Kind.REPLY:
            continue  # made when it is subscribed to
        if not is_pattern(source.address.name):
            _want(wanted, source.address, "")
        if source.group:
            _want(wanted, source.address, source.group)
    missing = [(*row, keyed) for row, keyed in wanted.items() if not _exists(tx.db, row, keyed)]
    if missing and provision is Provision.VERIFY:
        names = ", ".join(_say(kind, name, group) for kind, name, group, _ in missing)
        raise TopologyError(f"missing in {_file(tx.db)}, where nothing may be created (verify): {names}")
    if missing:
        tx.db.executemany("INSERT INTO msgbus_source (kind, name, grp, keyed) VALUES (?, ?, ?, ?)", missing)
        _changed(tx)


def _want(wanted: dict[tuple[str, str, str], bool], address: Address, group: str) -> None:
    row = (address.kind.value, address.name, group)
    if wanted.setdefault(row, address.keyed) != address.keyed:
        raise TopologyError(f"{_say(*row)} is declared both with and without a key")


def _exists(db: sqlite3.Connection, row: tuple[str, str, str], keyed: bool) -> bool:
    found = db.execute("SELECT keyed FROM msgbus_source WHERE kind = ? AND name = ? AND grp = ?", row).fetchall()
    if found and bool(found[0][0]) != keyed:
        there, here = ("with", "without") if found[0][0] else ("without", "with")
        raise TopologyError(
            f"{_say(*row)} exists in {_file(db)} {there} a key, but is declared {here} one: "
            "declare it the same way everywhere, or give it another name"
        )
    return bool(found)


def find(db: sqlite3.Connection, source: Source) -> Place:
    """Return where *source* is.

    Raises:
        TopologyError: It was not declared.
    """
    address = source.address
    rows = db.execute(
        "SELECT id, keyed FROM msgbus_source WHERE kind = ? AND name = ? AND grp = ?",
        (address.kind.value, address.name, source.group),
    ).fetchall()
    if not rows:
        raise TopologyError(f"{_say(address.kind, address.name, source.group)} was not declared in {_file(db)}")
    return Place(2 * rows[0][0], bool(rows[0][1]))


def add_reply(tx: Transaction, name: str) -> Place:
    """Create the reply queue *name*."""
    ((row,),) = tx.db.execute(
        "INSERT INTO msgbus_source (kind, name, grp, keyed, expires) VALUES (?, ?, '', 0, ?) RETURNING id",
        (Kind.REPLY.value, name, tx.now + _REPLY_LIFE),
    ).fetchall()
    _changed(tx)
    return Place(2 * row, keyed=False)


def keep_reply(tx: Transaction, name: str) -> Place:
    """Say that the process of the reply queue *name* lives; create it again if it was taken for dead."""
    rows = tx.db.execute(
        "UPDATE msgbus_source SET expires = ? WHERE kind = ? AND name = ? RETURNING id",
        (tx.now + _REPLY_LIFE, Kind.REPLY.value, name),
    ).fetchall()
    return Place(2 * rows[0][0], keyed=False) if rows else add_reply(tx, name)


def drop_reply(tx: Transaction, name: str) -> None:
    """Drop the reply queue *name* with what is in it."""
    rows = tx.db.execute("SELECT id FROM msgbus_source WHERE kind = ? AND name = ?", (Kind.REPLY.value, name))
    _drop(tx, [row for (row,) in rows.fetchall()])


def sweep_replies(tx: Transaction) -> None:
    """Drop the reply queues of processes that have not been heard of for long."""
    rows = tx.db.execute("SELECT id FROM msgbus_source WHERE kind = ? AND expires <= ?", (Kind.REPLY.value, tx.now))
    _drop(tx, [row for (row,) in rows.fetchall()])


def drop(tx: Transaction, source: Source) -> None:
    """Drop *source* with what is in it."""
    rows = tx.db.execute(
        "SELECT id FROM msgbus_source WHERE kind = ? AND name = ? AND grp = ?",
        (source.address.kind.value, source.address.name, source.group),
    )
    _drop(tx, [row for (row,) in rows.fetchall()])


def _drop(tx: Transaction, rows: list[int]) -> None:
    for row in rows:
        places = (2 * row, 2 * row + 1)
        for table in ("msgbus_entry", "msgbus_keyed"):
            tx.db.execute(
                f"DELETE FROM msgbus_message WHERE id IN (SELECT id FROM {table} WHERE place IN (?, ?))",  # noqa: S608 - ours
                places,
            )
        for table in ("msgbus_entry", "msgbus_keyed", "msgbus_lane"):
            tx.db.execute(f"DELETE FROM {table} WHERE place IN (?, ?)", places)  # noqa: S608 - ours
        tx.db.execute("DELETE FROM msgbus_source WHERE id = ?", (row,))
    if rows:
        _changed(tx)


def _changed(tx: Transaction) -> None:
    tx.db.execute("UPDATE msgbus_meta SET generation = generation + 1")


class Routes:
    """Which places a target's messages go to, remembered until the sources change (in whatever process)."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._generation = -1
        self._sources: dict[tuple[str, str, str], Place] = {}
        self._groups: dict[str, list[Place]] = {}
        self._patterns: list[tuple[re.Pattern[str], Place]] = []
        self._topics: dict[str, tuple[Place, ...] | None] = {}

    def refresh(self, db: sqlite3.Connection) -> None:
        """Read the sources again if they have changed."""
        ((generation,),) = db.execute("SELECT generation FROM msgbus_meta").fetchall()
        if generation == self._generation:
            return
        self._forget()
        for row, kind, name, group, keyed in db.execute("SELECT id, kind, name, grp, keyed FROM msgbus_source"):
            place = Place(2 * row, bool(keyed))
            self._sources[kind, name, group] = place
            if not group:
                continue
            if is_pattern(name):
                self._patterns.append((re.compile(pattern_regex(name)), place))
            else:
                self._groups.setdefault(name, []).append(place)
        self._generation = generation

    def places(self, target: Address | Source) -> tuple[Place, ...] | None:
        """Return where a message to *target* goes (nowhere, for a topic without groups); None if it is unknown."""
        if isinstance(target, Source):
            place = self._sources.get((target.address.kind.value, target.address.name, target.group))
            if place is not None and target.dead:
                place = Place(place.id + 1, keyed=False)
            return None if place is None else (place,)
        if target.kind is not Kind.TOPIC:
            place = self._sources.get((target.kind.value, target.name, ""))
            return None if place is None else (place,)
        if target.name not in self._topics:
            self._topics[target.name] = self._topic(target.name)
        return self._topics[target.name]

    def _topic(self, name: str) -> tuple[Place, ...] | None:
        matching = (place for pattern, place in self._patterns if pattern.fullmatch(name))
        places = (*self._groups.get(name, ()), *matching)
        return places if places or (Kind.TOPIC.value, name, "") in self._sources else None


def _say(kind: str, name: str, group: str) -> str:
    return f"group {group!r} of {kind} {name!r}" if group else f"{kind} {name!r}"


def _file(db: sqlite3.Connection) -> str:
    return str(db.execute("PRAGMA database_list").fetchall()[0][2])
