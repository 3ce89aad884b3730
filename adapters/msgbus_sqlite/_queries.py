"""What is asked about a source without changing it: its figures, and its messages page by page."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from msgbus.adapter import Received, Stats
from msgbus_sqlite._headers import load_headers
from msgbus_sqlite._topology import Place

__all__ = ["browse", "stats"]

_ENTRIES = """
SELECT count(*) FILTER (WHERE visible_at <= :now),
       count(*) FILTER (WHERE visible_at > :now AND token IS NOT NULL),
       count(*) FILTER (WHERE visible_at > :now AND token IS NULL),
       min(visible_at) FILTER (WHERE visible_at > :now)
FROM msgbus_entry WHERE place = :place
"""
_KEYED = """
SELECT count(*) FILTER (WHERE l.visible_at > :now AND l.held > 0 AND k.token = l.token),
       count(*) FILTER (WHERE k.due > :now OR (l.visible_at > :now AND l.held = 0)),
       count(*),
       min(l.visible_at) FILTER (WHERE l.visible_at > :now)
FROM msgbus_lane l JOIN msgbus_keyed k ON k.place = l.place AND k.key = l.key
WHERE l.place = :place AND l.visible_at < 9e999 AND k.dead IS NULL
"""
_OLDEST = """
SELECT min(m.time) FROM msgbus_message m WHERE m.id IN (
    SELECT * FROM (SELECT id FROM msgbus_entry WHERE place = :place AND visible_at = 0 ORDER BY id LIMIT 1)
    UNION ALL SELECT id FROM msgbus_entry WHERE place = :place AND visible_at > 0 AND visible_at <= :now
    UNION ALL SELECT head FROM msgbus_lane WHERE place = :place AND visible_at <= :now)
"""
_BROWSE = """
SELECT m.id, p.deliveries, m.channel, m.key, m.time, m.headers, m.body FROM (
    SELECT * FROM (SELECT id, deliveries FROM msgbus_entry
                   WHERE place = :place AND visible_at = 0 AND id > :after ORDER BY id LIMIT :limit)
    UNION ALL
    SELECT * FROM (SELECT id, deliveries FROM msgbus_entry
                   WHERE place = :place AND visible_at > 0 AND id > :after ORDER BY id LIMIT :limit)
    UNION ALL
    SELECT * FROM (SELECT id, deliveries FROM msgbus_keyed
                   WHERE place = :place AND dead IS NULL AND id > :after ORDER BY id LIMIT :limit)
) p JOIN msgbus_message m ON m.id = p.id ORDER BY m.id LIMIT :limit
"""


def stats(db: sqlite3.Connection, place: Place, now: float, *, dead: bool) -> Stats:
    """Return the figures of a source, or of its dead letters.

    What waits behind a delayed message of its key is delayed too; what a parked dead letter holds back is neither
    ready nor delayed.
    """
    values = {"place": place.id + dead, "now": now}
    ((ready, in_flight, delayed, due),) = db.execute(_ENTRIES, values).fetchall()
    if place.keyed and not dead:
        ((held, late, total, lane_due),) = db.execute(_KEYED, values).fetchall()
        ready, in_flight, delayed = ready + total - held - late, in_flight + held, delayed + late
        due = min((moment for moment in (due, lane_due) if moment is not None), default=None)
    ((oldest,),) = db.execute(_OLDEST, values).fetchall()
    ((buried,),) = db.execute("SELECT count(*) FROM msgbus_entry WHERE place = ?", (place.id + 1,)).fetchall()
    return Stats(
        ready=ready,
        in_flight=in_flight,
        delayed=delayed,
        dead=0 if dead else buried,
        oldest_age=None if oldest is None else max(0.0, now - oldest),
        next_due=due,
    )


def browse(db: sqlite3.Connection, place: int, *, limit: int, after: int) -> Sequence[Received]:
    """Return up to *limit* messages with positions above *after*, whatever state they are in."""
    rows = db.execute(_BROWSE, {"place": place, "limit": limit, "after": after}).fetchall()
    return [
        Received(body, load_headers(headers), deliveries, channel, key, time, number)
        for number, deliveries, channel, key, time, headers, body in rows
    ]
