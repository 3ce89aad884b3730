"""Many rows per statement.

`sqlite3` gives up the interpreter's lock for every step of a statement, once per row in `executemany`. While the event
loop is busy each time may cost a switch interval, so that inserting row by row is up to five times slower than in a
few large statements.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

__all__ = ["insert"]

_SIZES = (250, 50, 10, 1)
"""Rows per statement, so that a batch of any size takes few statements and all of them stay prepared. SQLite allows
32,766 values in one."""


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


@cache
def _statement(into: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"{into} VALUES {', '.join([row] * rows)}"
