"""Many rows per statement, and per step of it.

`sqlite3` gives up the interpreter's lock for every step of a statement: once per row in `executemany`, once per row
that is read. While the event loop is busy each time may cost a switch interval, so that inserting row by row is up to
five times slower than in a few large statements, and reading a batch keeps the event loop from doing anything else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

__all__ = ["fetch", "insert"]

_SIZES = (1000, 250, 50, 10, 1)
"""Rows per statement, so that a batch of any size takes few statements and all of them stay prepared. SQLite allows
32,766 values in one."""


_LARGE = 32_768
"""Bytes from which a body is read on its own: a thousand of this size is as much as should be copied together."""


def insert(db: sqlite3.Connection, into: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert *rows* of equal length.

    Args:
        db: The connection.
        into: The statement up to and without ``VALUES``.
        rows: What to insert.
    """
    start, left = 0, len(rows)
    for size in _SIZES:
        while left >= size:
            values = list(chain.from_iterable(rows[start : start + size]))
            db.execute(_statement(into, size, len(rows[start])), values)
            start, left = start + size, left - size


def fetch(db: sqlite3.Connection, select: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the rows of a query, read in one step.

    Args:
        db: The connection.
        select: A query whose columns are called ``id, deliveries, channel, key, time, headers, body``.
        values: Its parameters.
    """
    ((small, headers, bodies),) = db.execute(_together(select), values).fetchall()
    rows: list[tuple[Any, ...]] = []
    head = start = 0
    for number, deliveries, channel, key, time, head_size, size, is_large in json.loads(small):
        if is_large:
            ((body,),) = db.execute("SELECT body FROM msgbus_message WHERE id = ?", (number,)).fetchall()
        else:
            body = bodies[start : start + size]
            start += size
        rows.append((number, deliveries, channel, key, time, headers[head : head + head_size].decode(), body))
        head += head_size
    return rows


@cache
def _together(select: str) -> str:
    """Return a query for one row: what is small as JSON, with the sizes of headers and bodies, and these end to end.

    SQLite concatenates texts only; as a text a body keeps its bytes, whatever they are.
    """
    large = f"length(body) > {_LARGE}"
    return (
        "SELECT json_group_array(json_array(id, deliveries, channel, key, time, length(CAST(headers AS BLOB)), "  # noqa: S608
        f"length(body), {large})), CAST(group_concat(headers, '') AS BLOB), "
        f"CAST(group_concat(CASE WHEN {large} THEN '' ELSE CAST(body AS TEXT) END, '') AS BLOB) FROM ({select})"
    )


@cache
def _statement(into: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"{into} VALUES {', '.join([row] * rows)}"
