"""Lanes: on a keyed source, the messages of one key in order, consumed by one subscription at a time.

A lane is leased as a whole. Whoever leases it gets its first messages, and nobody gets anything of it (its holder
neither) until all of those are settled, or the lease ends; a lane is never split. So its state is one row:

============  ========================  ============================================================
state         visible_at                left by
============  ========================  ============================================================
ready         0                         `lease`
waiting       when its first message    `lease`, after that moment
              comes due
held          the lease's end           settling the last held message; the end of the lease
parked        infinity                  replaying or dropping the dead letter that its first row (with
                                        ``dead`` set) stands for
============  ========================  ============================================================

Ready lanes are handed out by the age of their first message (``head``). A message with a delay waits outside, as one
without a key does, and joins its lane's end when it comes due: a far-off one must not hold up its key.
"""

# ruff: noqa: S608 - the statements are put together from constants
from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import takewhile

from msgbus.adapter import ID, DeadLetter, Nack
from msgbus.errors import SettleError
from msgbus_sqlite import _messages as messages
from msgbus_sqlite._bulk import insert
from msgbus_sqlite._headers import load_headers
from msgbus_sqlite._messages import Held, Receipt, Row
from msgbus_sqlite._writer import Transaction

__all__ = ["add", "admit_due", "extend", "lease", "next_moment", "reclaim", "settle", "unpark"]

_NEVER = float("inf")
_HERE = "WHERE place = ? AND key = ?"


def add(tx: Transaction, rows: Sequence[tuple[int, str, int]]) -> None:
    """Put stored messages (place, key, id) at the end of their lanes."""
    insert(tx.db, "INSERT OR IGNORE INTO msgbus_lane (place, key, head)", rows)
    insert(tx.db, "INSERT INTO msgbus_keyed (place, key, id)", rows)


def admit_due(tx: Transaction, place: int) -> None:
    """Put the delayed messages that have come due at the end of their lanes."""
    due = tx.db.execute(
        "SELECT e.visible_at, e.id, m.key FROM msgbus_entry e JOIN msgbus_message m ON m.id = e.id "
        "WHERE e.place = ? AND e.visible_at > 0 AND e.visible_at <= ? AND e.token IS NULL AND m.key IS NOT NULL "
        "ORDER BY e.visible_at, e.id",
        (place, tx.now),
    ).fetchall()
    if not due:
        return
    first = messages.take_ids(tx, len(due))
    tx.db.executemany(
        "DELETE FROM msgbus_entry WHERE place = ? AND visible_at = ? AND id = ?",
        [(place, at, old) for at, old, _ in due],
    )
    tx.db.executemany(
        "UPDATE msgbus_message SET id = ? WHERE id = ?", [(first + n, old) for n, (_, old, _) in enumerate(due)]
    )
    add(tx, [(place, key, first + n) for n, (_, _, key) in enumerate(due)])


def next_moment(db: sqlite3.Connection, place: int) -> float | None:
    """Return when the lanes of *place* have something: 0 for now; None if all are empty or parked."""
    ((moment,),) = db.execute("SELECT min(visible_at) FROM msgbus_lane WHERE place = ?", (place,)).fetchall()
    return None if moment is None or moment == _NEVER else float(moment)


def lease(tx: Transaction, place: int, limit: int, until: float, token: int) -> list[Row]:
    """Hand out up to *limit* messages, the lanes with the oldest first, each an equal share."""
    tx.db.execute(
        "UPDATE msgbus_lane SET visible_at = 0 WHERE place = ? AND visible_at > 0 AND visible_at <= ?", (place, tx.now)
    )
    keys = tx.db.execute(
        "SELECT key FROM msgbus_lane WHERE place = ? AND visible_at = 0 ORDER BY head LIMIT ?", (place, limit)
    ).fetchall()
    taken: list[Row] = []
    held: list[Row] = []
    for position, (key,) in enumerate(keys):
        rows = _first(tx, place, key, (limit - len(taken)) // (len(keys) - position))
        if rows:
            taken += rows
            held.append((until, token, len(rows), place, key))
        else:  # its lease ended while its first message, given back with a delay, was not due
            _release(tx, place, key)
    tx.db.executemany(f"UPDATE msgbus_lane SET visible_at = ?, token = ?, held = ? {_HERE}", held)
    tx.db.executemany(
        f"UPDATE msgbus_keyed SET token = ?, deliveries = deliveries + 1 {_HERE} AND id = ?",
        [(token, place, row[3], row[0]) for row in taken],
    )
    return taken


def _first(tx: Transaction, place: int, key: str, count: int) -> list[Row]:
    """Return up to *count* messages from the head of a lane: what comes after one that has to wait waits too."""
    rows = tx.db.execute(
        "SELECT k.id, k.deliveries, m.channel, m.key, m.time, m.headers, m.body, k.due FROM msgbus_keyed k "
        "LEFT JOIN msgbus_message m ON m.id = k.id WHERE k.place = ? AND k.key = ? ORDER BY k.id LIMIT ?",
        (place, key, count),
    ).fetchall()
    return [row[:7] for row in takewhile(lambda row: row[7] <= tx.now, rows)]


def settle(tx: Transaction, held: Sequence[Held], errors: list[SettleError | None]) -> None:
    """Settle messages in lanes; note in *errors* the ones that are not ours any more."""
    lanes: dict[tuple[int, str], list[Held]] = {}
    for item in held:
        receipt = item[2]
        assert receipt.key is not None
        lanes.setdefault((receipt.place, receipt.key), []).append(item)
    done: list[int] = []
    for (place, key), items in lanes.items():
        token, count = _holder(tx, place, key)
        left = count
        for number, outcome, receipt in items:
            if receipt.token == token and _settle_one(tx, outcome, receipt, done):
                left -= 1
            else:
                errors[number] = messages.lost(receipt)
        if left == 0 < count:
            _release(tx, place, key)
        elif left < count:
            tx.db.execute(f"UPDATE msgbus_lane SET held = ? {_HERE}", (left, place, key))
    messages.delete(tx, done)


def _holder(tx: Transaction, place: int, key: str) -> tuple[int | None, int]:
    rows = tx.db.execute(f"SELECT token, held FROM msgbus_lane {_HERE}", (place, key)).fetchall()
    return rows[0] if rows else (None, 0)


def _settle_one(tx: Transaction, outcome: object, receipt: Receipt, done: list[int]) -> bool:
    mine = (receipt.place, receipt.key, receipt.id, receipt.token)
    if isinstance(outcome, Nack):
        due = tx.now + outcome.delay if outcome.delay > 0 else 0
        return _change(tx, "SET due = ?, deliveries = deliveries - ?", (due, 0 if outcome.counted else 1), mine)
    if isinstance(outcome, DeadLetter) and outcome.park:
        if not _change(tx, "SET due = ?", (_NEVER,), mine):
            return False
        number = messages.bury(tx, receipt, outcome)
        tx.db.execute(f"UPDATE msgbus_keyed SET dead = ? {_HERE} AND id = ?", (number, *mine[:3]))
        return True
    if not tx.db.execute(f"DELETE FROM msgbus_keyed {_HERE} AND id = ? AND token = ?", mine).rowcount:
        return False
    if isinstance(outcome, DeadLetter):
        messages.bury(tx, receipt, outcome)
    else:
        done.append(receipt.id)
    return True


def _change(tx: Transaction, change: str, values: tuple[object, ...], mine: tuple[object, ...]) -> bool:
    sql = f"UPDATE msgbus_keyed {change}, token = NULL {_HERE} AND id = ? AND token = ?"
    return tx.db.execute(sql, (*values, *mine)).rowcount > 0


def _release(tx: Transaction, place: int, key: str) -> None:
    """Make a lane that nobody holds available when its first message is; drop it if it has none."""
    first = tx.db.execute(f"SELECT id, due FROM msgbus_keyed {_HERE} ORDER BY id LIMIT 1", (place, key)).fetchall()
    if not first:
        tx.db.execute(f"DELETE FROM msgbus_lane {_HERE}", (place, key))
        return
    ((head, due),) = first
    tx.db.execute(
        f"UPDATE msgbus_lane SET visible_at = ?, head = ?, token = NULL, held = 0 {_HERE}",
        (due if due > tx.now else 0, head, place, key),
    )
    tx.woken.add(place)


def extend(tx: Transaction, receipt: Receipt, until: float) -> bool:
    """Let the lease of a message's lane end at *until* at the earliest; False if the message is not ours any more."""
    mine = (receipt.place, receipt.key, receipt.id, receipt.token)
    if not tx.db.execute(f"SELECT 1 FROM msgbus_keyed {_HERE} AND id = ? AND token = ?", mine).fetchall():
        return False
    sql = f"UPDATE msgbus_lane SET visible_at = max(visible_at, ?) {_HERE} AND token = ?"
    return tx.db.execute(sql, (until, receipt.place, receipt.key, receipt.token)).rowcount > 0


def reclaim(tx: Transaction, place: int, key: str, message_id: str) -> int | None:
    """Give the replay of a parked dead letter its old position, ahead of all that waited for it.

    Returns:
        The number under which the message is to be stored; None when no dead letter of that id parks the lane.
    """
    parked = tx.db.execute(
        "SELECT k.id, m.headers FROM msgbus_keyed k INDEXED BY msgbus_parked JOIN msgbus_message m ON m.id = k.dead "
        "WHERE k.place = ? AND k.key = ? AND k.dead IS NOT NULL ORDER BY k.id",
        (place, key),
    ).fetchall()
    number = next((int(old) for old, headers in parked if load_headers(headers).get(ID) == message_id), None)
    if number is None:
        return None
    tx.db.execute(
        f"UPDATE msgbus_keyed SET due = 0, token = NULL, deliveries = 0, dead = NULL {_HERE} AND id = ?",
        (place, key, number),
    )
    _release_unless_held(tx, place, key)
    return number


def unpark(tx: Transaction, place: int, key: str, dead: int) -> None:
    """Let a lane go on whose dead letter is dealt with."""
    if tx.db.execute(f"DELETE FROM msgbus_keyed {_HERE} AND dead = ?", (place, key, dead)).rowcount:
        _release_unless_held(tx, place, key)


def _release_unless_held(tx: Transaction, place: int, key: str) -> None:
    if tx.db.execute(f"SELECT 1 FROM msgbus_lane {_HERE} AND held = 0", (place, key)).fetchall():
        _release(tx, place, key)
