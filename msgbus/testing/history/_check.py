"""Check a history against the rules, count what it cost, and show what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgbus.testing.history._account import Account, Subscribed
from msgbus.testing.history._events import Event, EventKind
from msgbus.testing.history._rules import RULES, Violation

__all__ = ["Counts", "Findings", "HistoryError", "check_history"]

_SHOWN = 5
"""Violations of one rule that are shown with their history."""
_LINES = 60
"""Lines of one violation's history."""
_CONTEXT = 2.0
"""Seconds before a message's first event and after its last for which faults are shown."""


class HistoryError(AssertionError):
    """A history breaks the rules; the text shows where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a history consists of.

    Args:
        confirmed: Publish attempts that returned.
        failed: Those that were told the broker has not got the message.
        unknown: Those that never knew.
        handled: Messages that were handled, counted once for each subscription.
        dead: Messages that were dead-lettered, likewise.
        duplicates: Handlers that succeeded on a message that had been handled.
        redeliveries: Times a message was received again, retries included.
        faults: What was done to workers and broker.
        crashed: Dead letters whose reason is that their workers died.
        lost: Confirmed messages that are nowhere.
    """

    confirmed: int = 0
    failed: int = 0
    unknown: int = 0
    handled: int = 0
    dead: int = 0
    duplicates: int = 0
    redeliveries: int = 0
    faults: int = 0
    crashed: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """What the check of a history found.

    Args:
        violations: The rules that were broken, message by message.
        counts: What the history consists of.
        account: The history by message.
    """

    violations: tuple[Violation, ...]
    counts: Counts
    account: Account

    def describe(self) -> str:
        """Return the violations, each with the history of its messages; empty when there are none."""
        parts: list[str] = []
        for rule in dict.fromkeys(v.rule for v in self.violations):
            broken = [v for v in self.violations if v.rule == rule]
            parts.append(f"{rule}: {len(broken)} violations")
            for violation in broken[:_SHOWN]:
                parts.append(f"- {violation.text}")
                parts += [f"    {line}" for line in _lines(self.account.events, violation.ids)]
            if len(broken) > _SHOWN:
                parts.append(f"- and {len(broken) - _SHOWN} more")
        return "\n".join(parts)

    def raise_if_broken(self) -> None:
        """Raise `HistoryError` if a rule was broken."""
        if self.violations:
            raise HistoryError(self.describe())


def check_history(events: Sequence[Event], subscriptions: Iterable[Subscribed]) -> Findings:
    """Check a history.

    Args:
        events: The history, by time (see `read_history`); it ends when all messages have come to rest.
        subscriptions: What the workload consumes, and what is expected of each.

    Returns:
        What was found; `Findings.raise_if_broken` makes a test fail.
    """
    account = Account(events, subscriptions)
    violations = tuple(violation for rule in RULES for violation in rule(account))
    return Findings(violations, _count(account, violations), account)


def _count(account: Account, violations: Iterable[Violation]) -> Counts:
    fates = [fate for by_id in account.fates.values() for fate in by_id.values()]
    outcomes = [attempt.outcome for attempts in account.attempts.values() for attempt in attempts]
    good = [sum(run.succeeded for run in fate.runs) for fate in fates]
    return Counts(
        confirmed=outcomes.count(EventKind.CONFIRMED),
        failed=outcomes.count(EventKind.FAILED),
        unknown=outcomes.count(EventKind.UNKNOWN),
        handled=sum(count > 0 for count in good),
        dead=sum(bool(fate.dead) for fate in fates),
        duplicates=sum(max(0, count - 1) for count in good),
        redeliveries=sum(max(0, len(fate.received) - 1) for fate in fates),
        faults=sum(len(faults) for faults in account.faults.values()),
        crashed=sum(any(event.detail == "crashed" for event in fate.dead) for fate in fates),
        lost=sum(violation.rule == "lost" for violation in violations),
    )


def _lines(events: Sequence[Event], ids: tuple[str, ...]) -> list[str]:
    """Return the events of some messages, and the faults of that time, one line each."""
    own = [event for event in events if event.id in ids] if ids else []
    if not own:
        return []
    since, until = own[0].time - _CONTEXT, own[-1].time + _CONTEXT
    shown = [
        event for event in events if event.id in ids or (event.kind is EventKind.FAULT and since <= event.time <= until)
    ]
    lines = [_line(event, own[0].time) for event in shown]
    half = _LINES // 2
    return lines if len(lines) <= _LINES else [*lines[:half], f"… {len(lines) - _LINES} more …", *lines[-half:]]


def _line(event: Event, start: float) -> str:
    words = [f"{event.time - start:+9.3f} s", f"{event.who:<12}", f"{event.kind:<9}", event.id, event.subscription]
    words += [f"key={event.key}"] if event.key is not None else []
    words += [f"attempt={event.attempt}"] if event.attempt else []
    words += [event.detail] if event.detail else []
    return " ".join(word for word in words if word)
