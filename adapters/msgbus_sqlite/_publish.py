"""Publishing a batch: route each message, number the copies, store them all with a few statements."""

from __future__ import annotations

from collections.abc import Sequence

from msgbus.adapter import Outgoing, Source
from msgbus.errors import MessageTooLarge, PublishError, PublishRejected, Unroutable
from msgbus_sqlite import _lanes as lanes
from msgbus_sqlite import _messages as messages
from msgbus_sqlite._headers import dump_headers
from msgbus_sqlite._messages import Row
from msgbus_sqlite._topology import Place, Routes
from msgbus_sqlite._writer import Transaction

__all__ = ["MAX_BODY", "Prepared", "prepare", "publish"]

MAX_BODY = 64 * 1024 * 1024
"""Bytes. SQLite takes 1 GB, but every process holds a whole batch of bodies in memory."""

Prepared = tuple[int, Outgoing, str]
"""A message's number in its batch, the message, its headers as text."""


def prepare(batch: Sequence[Outgoing], errors: list[PublishError | None]) -> list[Prepared]:
    """Encode what can be stored; note in *errors* what cannot."""
    prepared: list[Prepared] = []
    for number, message in enumerate(batch):
        if len(message.body) > MAX_BODY:
            errors[number] = MessageTooLarge(len(message.body), MAX_BODY)
        elif message.key is not None and not _is_text(message.key):
            errors[number] = PublishRejected(f"the key {message.key!r} is not Unicode text")
        else:
            prepared.append((number, message, dump_headers(message.headers)))
    return prepared


def publish(
    tx: Transaction, routes: Routes, batch: Sequence[Prepared], errors: list[PublishError | None]
) -> list[PublishError | None]:
    """Store a batch; return *errors* with a message's own error where nothing takes it."""
    routes.refresh(tx.db)
    results = errors.copy()
    routed: list[tuple[Outgoing, str, Place]] = []
    known: dict[int, tuple[Place, ...] | None] = {}
    for number, message, headers in batch:
        target = message.target
        if id(target) not in known:  # batches repeat the same object, and hashing one costs more than this
            known[id(target)] = routes.places(target)
        places = known[id(target)]
        if places is None:
            results[number] = Unroutable(f"{target} does not exist in this database: declare it before publishing")
        else:
            routed += [(message, headers, place) for place in places]
    if routed:
        _store(tx, routed)
    return results


def _store(tx: Transaction, routed: list[tuple[Outgoing, str, Place]]) -> None:
    rows: list[Row] = []
    entries: list[Row] = []
    members: list[tuple[int, str, int]] = []
    number = messages.take_ids(tx, len(routed))
    for message, headers, (place, keyed) in routed:
        target, key, own = message.target, message.key, number
        number += 1
        if message.delay > 0:
            entries.append((place, tx.now + message.delay, own))
        elif not keyed or key is None:
            entries.append((place, 0, own))
        elif isinstance(target, Source) and (old := lanes.reclaim(tx, place, key, message.id)) is not None:
            own = old
        else:
            members.append((place, key, own))
        channel = message.channel or (target.address.name if isinstance(target, Source) else target.name)
        rows.append((own, channel, key, tx.now, headers, message.body))
        tx.woken.add(place)
    messages.add(tx, rows, entries)
    if members:
        lanes.add(tx, members)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
