"""Messages in the tables: putting them in, handing them out, settling them. What has a key's lane is in `_lanes`.

Every function runs inside a transaction of the writer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from msgbus.adapter import Ack, DeadLetter, Nack, Outcome, Received
from msgbus.errors import LeaseLost, SettleError
from msgbus_sqlite._bulk import fetch, insert
from msgbus_sqlite._headers import dump_headers, load_headers
from msgbus_sqlite._writer import Transaction

__all__ = [
    "Receipt",
    "add",
    "bury",
    "delete",
    "extend",
    "lease",
    "lost",
    "next_moment",
    "settle",
    "take_ids",
    "to_received",
]

_MOST = 1_000
"""Messages handed out at once."""

Row = tuple[Any, ...]
"""id, deliveries so far, channel, key, time, headers, body."""


class Receipt:
    """What is needed to settle a message.

    Attributes:
        place: Where it is.
        key: The key of the lane it is in; of a dead letter, its key; else None.
        id: The message's.
        token: What the lease is called, unique to one call of `receive`.
        until: When the lease ends. Read and written by the writer's thread only, but for a glance.
    """

    __slots__ = ("id", "key", "place", "token", "until")

    def __init__(self, place: int, key: str | None, id: int, token: int, until: float) -> None:
        self.place = place
        self.key = key
        self.id = id
        self.token = token
        self.until = until

    @property
    def in_lane(self) -> bool:
        """Whether the message is in a lane of its key."""
        return self.key is not None and not self.place & 1


Held = tuple[int, Outcome, Receipt]
"""An outcome's number in its batch, the outcome, and the message's receipt."""


def lost(receipt: Receipt) -> LeaseLost:
    """Return the error for a message that is not ours any more."""
    return LeaseLost(f"message {receipt.id} is not held by this consumer any more: its lease ended, or it was settled")


def take_ids(tx: Transaction, count: int) -> int:
    """Return the first of *count* new message ids in a row."""
    ((following,),) = tx.db.execute(
        "UPDATE msgbus_meta SET next_id = next_id + ? RETURNING next_id", (count,)
    ).fetchall()
    return int(following) - count


def add(tx: Transaction, messages: Sequence[Row], entries: Sequence[Row]) -> None:
    """Store messages (id, channel, key, time, headers, body) and where they wait (place, visible_at, id)."""
    insert(tx.db, "INSERT INTO msgbus_message (id, channel, key, time, headers, body)", messages)
    insert(tx.db, "INSERT INTO msgbus_entry (place, visible_at, id)", entries)


def next_moment(db: sqlite3.Connection, place: int) -> float | None:
    """Return when *place* has something: 0 for now, or when the next thing comes due; None if it is empty."""
    ((moment,),) = db.execute("SELECT min(visible_at) FROM msgbus_entry WHERE place = ?", (place,)).fetchall()
    return None if moment is None else float(moment)


def lease(tx: Transaction, place: int, limit: int, until: float, token: int) -> list[Row]:
    """Hand out up to *limit* messages, oldest first."""
    tx.db.execute(
        "UPDATE msgbus_entry SET visible_at = 0, token = NULL WHERE place = ? AND visible_at > 0 AND visible_at <= ?",
        (place, tx.now),
    )
    rows = fetch(
        tx.db,
        "SELECT e.id, e.deliveries, m.channel, m.key, m.time, m.headers, m.body FROM msgbus_entry e "
        "JOIN msgbus_message m ON m.id = e.id WHERE e.place = ? AND e.visible_at = 0 ORDER BY e.id LIMIT ?",
        (place, min(limit, _MOST)),
    )
    if rows:
        # The very rows: nobody else writes, and the ids are in order.
        tx.db.execute(
            "UPDATE msgbus_entry SET visible_at = ?, token = ?, deliveries = deliveries + 1 "
            "WHERE place = ? AND visible_at = 0 AND id <= ?",
            (until, token, place, rows[-1][0]),
        )
    return rows


def to_received(row: Row, receipt: Receipt) -> Received:
    """Return a row that was handed out as the core wants it."""
    number, deliveries, channel, key, time, headers, body = row
    return Received(body, load_headers(headers), deliveries + 1, channel, key, time, number, receipt)


def settle(tx: Transaction, held: Sequence[Held], errors: list[SettleError | None]) -> None:
    """Settle messages that are in no lane; note in *errors* the ones that are not ours any more."""
    acks = [(number, receipt) for number, outcome, receipt in held if type(outcome) is Ack]
    _ack(tx, acks, errors)
    for number, outcome, receipt in held:
        if isinstance(outcome, Nack):
            if not give_back(tx, receipt, outcome.delay, counted=outcome.counted):
                errors[number] = lost(receipt)
        elif isinstance(outcome, DeadLetter):
            if receipt.place & 1:
                errors[number] = SettleError("a dead letter can be acked (dropped) or nacked, not dead-lettered again")
            elif _remove(tx, receipt):
                bury(tx, receipt, outcome)
            else:
                errors[number] = lost(receipt)


def _ack(tx: Transaction, acks: list[tuple[int, Receipt]], errors: list[SettleError | None]) -> None:
    leases: dict[tuple[int, float, int], list[tuple[int, Receipt]]] = {}
    for item in acks:
        receipt = item[1]
        leases.setdefault((receipt.place, receipt.until, receipt.token), []).append(item)
    gone: set[int] = set()
    for place_until_token, items in leases.items():
        mine = _remove_all(tx, place_until_token, [receipt.id for _, receipt in items])
        gone |= mine
        for number, receipt in items:
            if receipt.id in mine:
                mine.discard(receipt.id)  # a second ack of it in the same batch is one too many
            else:
                errors[number] = lost(receipt)
    delete(tx, gone)


def _remove_all(tx: Transaction, lease: tuple[int, float, int], ids: list[int]) -> set[int]:
    """Remove what is still ours of the messages handed out with one lease; return their ids."""
    sql = (
        "DELETE FROM msgbus_entry WHERE place = ? AND visible_at = ? AND token = ? "
        "AND id IN (SELECT value FROM json_each(?))"
    )
    values = (*lease, json.dumps(ids))
    tx.db.execute("SAVEPOINT removal")
    if tx.db.execute(sql, values).rowcount == len(ids):  # as nearly always, and then nobody need ask which
        removed = set(ids)
    else:
        tx.db.execute("ROLLBACK TO removal")
        removed = {number for (number,) in tx.db.execute(f"{sql} RETURNING id", values).fetchall()}
    tx.db.execute("RELEASE removal")
    return removed


def delete(tx: Transaction, ids: Iterable[int]) -> None:
    """Delete messages for good."""
    tx.db.execute("DELETE FROM msgbus_message WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),))


def give_back(tx: Transaction, receipt: Receipt, delay: float, *, counted: bool) -> bool:
    """Make a message that is in no lane available again; False if it is not ours any more."""
    moved = tx.db.execute(
        "UPDATE msgbus_entry SET visible_at = ?, token = NULL, deliveries = deliveries - ? "
        "WHERE place = ? AND visible_at = ? AND id = ? AND token = ?",
        (
            tx.now + delay if delay > 0 else 0,
            0 if counted else 1,
            receipt.place,
            receipt.until,
            receipt.id,
            receipt.token,
        ),
    ).rowcount
    if moved:
        tx.woken.add(receipt.place)
    return moved > 0


def _remove(tx: Transaction, receipt: Receipt) -> bool:
    return bool(
        tx.db.execute(
            "DELETE FROM msgbus_entry WHERE place = ? AND visible_at = ? AND id = ? AND token = ?",
            (receipt.place, receipt.until, receipt.id, receipt.token),
        ).rowcount
    )


def bury(tx: Transaction, receipt: Receipt, outcome: DeadLetter) -> int:
    """Move a message among its source's dead letters, as the youngest of them; return its new id."""
    number = take_ids(tx, 1)
    tx.db.execute(
        "UPDATE msgbus_message SET id = ?, time = ?, headers = ? WHERE id = ?",
        (number, tx.now, dump_headers(outcome.headers), receipt.id),
    )
    dead = receipt.place + 1
    tx.db.execute("INSERT INTO msgbus_entry (place, visible_at, id) VALUES (?, 0, ?)", (dead, number))
    tx.woken.add(dead)
    return number


def extend(tx: Transaction, receipt: Receipt, until: float) -> bool:
    """Let the lease of a message that is in no lane end at *until*; False if it is not ours any more."""
    moved = tx.db.execute(
        "UPDATE msgbus_entry SET visible_at = ? WHERE place = ? AND visible_at = ? AND id = ? AND token = ?",
        (until, receipt.place, receipt.until, receipt.id, receipt.token),
    ).rowcount
    return moved > 0
