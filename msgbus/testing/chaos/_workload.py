"""What runs while things break: the channels, their handlers, and what is expected of each."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msgbus import Bus, Delivery, Idempotency, Queue, RequestReply, Retry, Topic
from msgbus.adapter import Capabilities
from msgbus.testing.history import Journal, Recorder, Subscribed

__all__ = ["ATTEMPTS", "GROUPS", "Channels", "Effects", "Setup", "register", "subscriptions"]

ATTEMPTS = 6
GROUPS = ("audit", "mail", "once")
_CONCURRENCY = 8
_SLACK = 20
"""By how many attempts the core lets a broker be wrong that counts only approximately."""
_CLAIM = 8.0
"""Seconds until the claim of a killed worker ends; longer than any worker is stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What every process of a run knows.

    Args:
        url: Where the broker is reached.
        namespace: The run's own.
        store_url: The idempotency store.
        folder: Where journals and effects are kept.
        lease: Seconds, for the buses.
        ordered: Whether there is a queue with keys.
        grouped: Whether there is a topic.
        asked: Whether there are requests.
    """

    url: str
    namespace: str
    store_url: str
    folder: str
    lease: float
    ordered: bool
    grouped: bool
    asked: bool

    def to_json(self) -> str:
        """Return it as text, for a worker's environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def recorder(self, who: str) -> Recorder:
        """Return a recorder for the process *who*."""
        return Recorder(Journal(Path(self.folder) / f"{who}.jsonl", who), self.namespace)

    def bus(self, cls: type[Bus] = Bus, **options: Any) -> Bus:
        """Return a bus, not opened yet."""
        return cls(
            self.url,
            namespace=self.namespace,
            lease=self.lease,
            idempotency_url=self.store_url,
            drain_timeout=5.0,
            publish_timeout=10.0,
            **options,
        )


class Channels:
    """The workload's channels."""

    def __init__(self) -> None:
        self.work = Queue("work")
        self.garbage = Queue("work", bytes)
        self.keyed = Queue("keyed", key="key")
        self.once = Queue("once")
        self.events = Topic("events")
        self.echo = RequestReply("echo", str, str)


class Effects:
    """Counts in a SQLite file how often each message took effect."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "effects.db"
        with closing(self._connect()) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE IF NOT EXISTS effect (id TEXT NOT NULL)")
        self._database = self._connect()

    def happen(self, id: str) -> None:
        """Let the message *id* take effect."""
        self._database.execute("INSERT INTO effect VALUES (?)", (id,))

    def counts(self) -> dict[str, int]:
        """Return how often each message took effect."""
        return dict(self._database.execute("SELECT id, COUNT(*) FROM effect GROUP BY id"))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30, isolation_level=None)


class _Planned(Exception):
    """The failure that a message asks for."""


def register(bus: Bus, setup: Setup, recorder: Recorder, effects: Effects) -> None:
    """Register the handlers of all channels."""
    channels = Channels()
    options: dict[str, Any] = {
        "concurrency": _CONCURRENCY,
        "retry": Retry(attempts=ATTEMPTS, base=0.05, factor=2.0, cap=1.0),
    }
    handle = _handler(recorder)
    bus.on(channels.work, **options)(handle)
    bus.on(channels.once, idempotent=Idempotency(lease=_CLAIM), **options)(_handler(recorder, effects.happen))
    if setup.ordered:
        bus.on(channels.keyed, **options)(handle)
    if setup.grouped:
        for group in GROUPS:
            idempotent = Idempotency(lease=_CLAIM) if group == "once" else False
            bus.on(channels.events, group=group, idempotent=idempotent, **options)(handle)
    if setup.asked:
        bus.on(channels.echo, concurrency=_CONCURRENCY)(_answer)


def _handler(recorder: Recorder, happen: Callable[[str], None] | None = None) -> Callable[..., Any]:
    async def handle(payload: dict[str, Any], delivery: Delivery[dict[str, Any]]) -> None:
        message = delivery.message
        if payload["id"] != message.id or payload.get("key") != message.key:
            recorder.complain(f"the message carries the body of {payload['id']}", id=message.id)
        await asyncio.sleep(payload["takes"])
        if delivery.attempt <= payload["fail"]:
            raise _Planned(f"attempt {delivery.attempt} of {payload['id']}")
        if happen is not None:
            happen(message.id)

    return handle


async def _answer(question: str) -> str:
    return f"re: {question}"


def subscriptions(setup: Setup, capabilities: Capabilities) -> list[Subscribed]:
    """Return what is expected of the workload's subscriptions."""
    slack = 0 if capabilities.delivery_count == "exact" else _SLACK

    def subscribed(channel: str, **rest: Any) -> Subscribed:
        return Subscribed(channel=channel, attempts=ATTEMPTS, slack=slack, **rest)

    found = [subscribed("work"), subscribed("once", idempotent=True)]
    if setup.ordered:
        found.append(subscribed("keyed", ordered=True))
    if setup.grouped:
        found += [subscribed("events", group=group, idempotent=group == "once") for group in GROUPS]
    if setup.asked:
        found.append(Subscribed(channel="echo", attempts=1, slack=_SLACK, answers=True))
    return found
