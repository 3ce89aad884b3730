"""What a history consists of, and where it is kept: JSON lines, one file per writer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

__all__ = ["Event", "EventKind", "Journal", "read_history"]


class EventKind(StrEnum):
    """What happened."""

    PUBLISH = "publish"
    """A publish attempt began."""
    CONFIRMED = "confirmed"
    """It returned: the broker has the message."""
    FAILED = "failed"
    """It raised an error which says that the broker does not have the message."""
    UNKNOWN = "unknown"
    """It raised an error which leaves that open, or never ended."""
    RECEIVED = "received"
    """The adapter handed the message to the core."""
    STARTED = "started"
    """A handler began."""
    ENDED = "ended"
    """It ended; ``detail`` is ``ok``, ``cancelled``, or the exception's class."""
    SETTLED = "settled"
    """The broker took the settlement, or did not; ``detail`` says which settlement, and its error."""
    DEAD = "dead"
    """The message was found among the dead letters; ``detail`` is the reason, the time that of its last attempt."""
    EFFECT = "effect"
    """An idempotent handler's effect, found afterwards."""
    FAULT = "fault"
    """Something was done to ``who``: a worker, or the broker."""
    COMPLAINT = "complaint"
    """Whoever wrote it saw something that must not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Args:
        time: When: seconds since 1970. All writers are on one machine, so these can be compared.
        who: The process that saw it; on faults, whom it happened to.
        kind: What.
        id: The message's id.
        channel: The channel's name.
        group: The consumer group; empty but for topics.
        key: The ordering key.
        run: Joins the events of one publish attempt, and those of one handler call.
        attempt: The attempt's number, as the handler was told.
        detail: See `EventKind`.
        due: On publishes: not to be handled before this time.
        expires: On publishes: not to be handled after this time.
    """

    time: float
    who: str
    kind: EventKind
    id: str = ""
    channel: str = ""
    group: str = ""
    key: str | None = None
    run: str = ""
    attempt: int = 0
    detail: str = ""
    due: float | None = None
    expires: float | None = None

    @property
    def subscription(self) -> str:
        """The channel and the group, as people write them."""
        return f"{self.channel}@{self.group}" if self.group else self.channel

    def to_json(self) -> str:
        """Return it as one line; what is empty is left out."""
        values = {name: getattr(self, name) for name in _DEFAULTS}
        return json.dumps({name: value for name, value in values.items() if value != _DEFAULTS[name]})

    @classmethod
    def from_json(cls, line: str) -> Event:
        """Read a line; raises ValueError when it is not a whole one."""
        data: dict[str, Any] = json.loads(line)
        return cls(**{**data, "kind": EventKind(data["kind"])})


_DEFAULTS = {field.name: field.default for field in fields(Event)}


class Journal:
    """Appends events to a file, each with one system call: what was written survives the writer's SIGKILL.

    Args:
        path: The file; a new one for each process.
        who: The writer's name.
    """

    def __init__(self, path: Path, who: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.who = who
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, kind: EventKind, *, who: str | None = None, at: float | None = None, **details: Any) -> Event:
        """Write an event down and return it.

        Args:
            kind: What happened.
            who: To whom, if not to the writer.
            at: When, if not now.
            **details: The other fields of `Event`.
        """
        event = Event(time=time.time() if at is None else at, who=who or self.who, kind=kind, **details)
        os.write(self._file, event.to_json().encode() + b"\n")
        return event

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._file != -1:
            os.close(self._file)
            self._file = -1


def read_history(folder: Path | Iterable[Path]) -> list[Event]:
    """Return the events of all journals (``*.jsonl``) in a folder, or in the files given, by time."""
    files = sorted(folder.glob("*.jsonl")) if isinstance(folder, Path) else folder
    events: list[Event] = []
    for file in files:
        # A line without its end is being written at this moment, or its writer was killed while it wrote.
        events += [Event.from_json(line) for line in file.read_text().split("\n")[:-1]]
    return sorted(events, key=lambda event: event.time)
