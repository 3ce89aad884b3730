"""A history put in order: what became of each message, publish by publish and subscription by subscription."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgbus.testing.history._events import Event, EventKind

__all__ = ["Account", "Attempt", "Fate", "Run", "Subscribed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """One subscription of the workload, and what is expected of it.

    Args:
        channel: The channel's name.
        group: The consumer group; empty but for topics.
        attempts: Its retry policy's.
        slack: By how many an attempt's number may exceed that, where the broker does not count exactly.
        ordered: Whether messages of one key are handled in order.
        idempotent: Whether a message that was handled is not handled again.
        answers: Whether it answers requests: those need not be handled.
    """

    channel: str
    group: str = ""
    attempts: int = 5
    slack: int = 0
    ordered: bool = False
    idempotent: bool = False
    answers: bool = False

    @property
    def label(self) -> str:
        """The channel and the group, as people write them."""
        return f"{self.channel}@{self.group}" if self.group else self.channel


@dataclass(slots=True)
class Attempt:
    """One publish attempt: its beginning and, if it was seen, its end."""

    began: Event
    ended: Event | None = None

    @property
    def outcome(self) -> EventKind:
        """Confirmed, failed or unknown."""
        return EventKind.UNKNOWN if self.ended is None else self.ended.kind


@dataclass(slots=True)
class Run:
    """One handler call: its start and, if it was seen, its end."""

    started: Event
    ended: Event | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the handler returned."""
        return self.ended is not None and self.ended.detail == "ok"

    @property
    def raised(self) -> bool:
        """Whether the handler raised an exception of its own."""
        return self.ended is not None and self.ended.detail not in ("ok", "cancelled")


@dataclass(slots=True)
class Fate:
    """What became of one message in one subscription."""

    received: list[Event] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    buried: list[Event] = field(default_factory=list)
    unburied: list[Event] = field(default_factory=list)
    dead: list[Event] = field(default_factory=list)
    effects: int | None = None

    @property
    def settled(self) -> float | None:
        """When it was first handled to its end, or when the broker first said that it is a dead letter; or None."""
        times = [run.ended.time for run in self.runs if run.ended is not None and run.succeeded]
        times += [event.time for event in (*self.buried, *self.dead)]
        return min(times, default=None)

    @property
    def safe(self) -> bool:
        """Whether it was handled to its end, or found among the dead letters."""
        return bool(self.dead) or any(run.succeeded for run in self.runs)


class Account:
    """All that a history says, by message.

    Args:
        events: The history, by time.
        subscriptions: What the workload consumes.

    Attributes:
        events: As given.
        attempts: Each message's publish attempts, in order.
        fates: Each subscription's messages.
        faults: What was done to whom.
    """

    def __init__(self, events: Sequence[Event], subscriptions: Iterable[Subscribed]) -> None:
        self.events = events
        self.subscriptions = tuple(subscriptions)
        self.attempts: dict[str, list[Attempt]] = defaultdict(list)
        self.fates: dict[str, dict[str, Fate]] = {s.label: {} for s in self.subscriptions}
        self.faults: dict[str, list[Event]] = defaultdict(list)
        self._open: dict[str, Attempt | Run] = {}
        for event in events:
            self._take(event)

    def confirmed(self, channel: str) -> list[Attempt]:
        """Return the attempts on *channel* whose message the broker has certainly got, by their beginning."""
        found = [
            attempt
            for attempts in self.attempts.values()
            for attempt in attempts
            if attempt.began.channel == channel and attempt.outcome is EventKind.CONFIRMED
        ]
        return sorted(found, key=lambda attempt: attempt.began.time)

    def unsettled(self) -> list[tuple[Subscribed, str]]:
        """Return the confirmed messages that have not come to rest, with the subscription that owes it."""
        return [
            (wanted, id)
            for wanted in self.subscriptions
            if not wanted.answers
            for id in dict.fromkeys(attempt.began.id for attempt in self.confirmed(wanted.channel))
            if (fate := self.fates[wanted.label].get(id)) is None or fate.settled is None
        ]

    def disturbed(self, who: str, since: float, until: float) -> bool:
        """Tell whether *who* was killed or stopped between two times, or was stopped then; asking to end is neither."""
        lasting = False
        for fault in self.faults.get(who, ()):
            if fault.detail == "term":
                continue
            if since <= fault.time <= until:
                return True
            if fault.time > until:
                break
            lasting = fault.detail == "stop"
        return lasting

    def _take(self, event: Event) -> None:
        match event.kind:
            case EventKind.PUBLISH:
                attempt = Attempt(event)
                self.attempts[event.id].append(attempt)
                self._open[event.run] = attempt
            case EventKind.FAULT:
                self.faults[event.who].append(event)
            case EventKind.CONFIRMED | EventKind.FAILED | EventKind.UNKNOWN | EventKind.ENDED:
                if (begun := self._open.pop(event.run, None)) is not None:
                    begun.ended = event
            case EventKind.RECEIVED | EventKind.STARTED | EventKind.SETTLED | EventKind.DEAD | EventKind.EFFECT:
                self._take_delivery(event)
            case _:
                pass

    def _take_delivery(self, event: Event) -> None:
        fate = self.fates.setdefault(event.subscription, {}).setdefault(event.id, Fate())
        match event.kind:
            case EventKind.RECEIVED:
                fate.received.append(event)
            case EventKind.STARTED:
                run = Run(event)
                fate.runs.append(run)
                self._open[event.run] = run
            case EventKind.SETTLED:
                fate.buried += [event] if event.detail == "deadletter" else []
                fate.unburied += [event] if event.detail.startswith("deadletter refused") else []
            case EventKind.DEAD:
                fate.dead.append(event)
            case _:
                fate.effects = (fate.effects or 0) + event.attempt
