"""The rules that every history has to keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from msgbus.testing.history._account import Account, Attempt, Fate, Run, Subscribed
from msgbus.testing.history._events import Event, EventKind

__all__ = ["RULES", "Violation"]

_EARLY = 0.005
"""Seconds: brokers measure time in whole milliseconds."""
_LATE = 3.0
"""Seconds between the look at a message's expiry and its handler's first step, on a busy machine."""
_AFTERMATH = 5.0
"""Seconds after a handler's end within which the news of it may still be lost with its worker."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken.

    Args:
        rule: The rule's name.
        text: What happened.
        ids: The messages whose history shows it.
    """

    rule: str
    text: str
    ids: tuple[str, ...] = ()


Rule = Callable[[Account], Iterator[Violation]]


def lost(account: Account) -> Iterator[Violation]:
    """Each confirmed message is handled or dead-lettered, in each subscription of its channel."""
    for wanted in account.subscriptions:
        if wanted.answers:
            continue
        fates = account.fates[wanted.label]
        for id in dict.fromkeys(attempt.began.id for attempt in account.confirmed(wanted.channel)):
            fate = fates.get(id)
            if fate is None or not fate.safe:
                text = f"{id} on {wanted.label} was confirmed, and neither handled nor is it a dead letter"
                yield Violation("lost", text, (id,))


def invented(account: Account) -> Iterator[Violation]:
    """Nothing appears that was never published there, or whose publish certainly failed."""
    for label, fates in account.fates.items():
        channel = label.partition("@")[0]
        for id in fates:
            outcomes = [a.outcome for a in account.attempts.get(id, ()) if a.began.channel == channel]
            if not outcomes:
                yield Violation("invented", f"{id!r} appeared on {label} and was never published there", (id,))
            elif all(outcome is EventKind.FAILED for outcome in outcomes):
                text = f"{id} appeared on {label}, but its publisher was told that it was not sent"
                yield Violation("invented", text, (id,))


def order(account: Account) -> Iterator[Violation]:
    """No message of a key is started before all earlier ones of that key are handled or dead-lettered."""
    for wanted in account.subscriptions:
        if not wanted.ordered:
            continue
        keys: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in account.confirmed(wanted.channel):
            if attempt.began.key is not None:
                keys[attempt.began.key].append(attempt)
        for key, attempts in keys.items():
            yield from _order_of(account.fates[wanted.label], key, attempts, wanted)


def _order_of(fates: dict[str, Fate], key: str, attempts: list[Attempt], wanted: Subscribed) -> Iterator[Violation]:
    """Compare each message with the one before it that was confirmed when its own publish began."""
    latest = ("", 0.0)  # of the messages so far: which was settled last, and when
    confirmed = 0.0
    for attempt in attempts:
        id, fate = attempt.began.id, fates.get(attempt.began.id)
        if fate is None:
            continue
        if fate.runs and confirmed <= attempt.began.time and fate.runs[0].started.time < latest[1]:
            early = latest[1] - fate.runs[0].started.time
            text = (
                f"{id} on {wanted.label} was started {early:.3f} s before {latest[0]}, earlier of key {key!r}, was done"
            )
            yield Violation("order", text, (latest[0], id))
        if fate.settled is not None:
            latest = max(latest, (id, fate.settled), key=lambda pair: pair[1])
        confirmed = max(confirmed, attempt.ended.time if attempt.ended else 0.0)


def attempts(account: Account) -> Iterator[Violation]:
    """No message is tried more often than its policy allows before it is a dead letter.

    Afterwards it may come again, as anything that was settled when the broker died: a duplicate. And a failure does not
    count whose news got lost, because the worker was harmed or the broker was not there to take the dead letter.
    """
    for wanted in account.subscriptions:
        for id, fate in account.fates[wanted.label].items():
            end = min((event.time for event in (*fate.buried, *fate.dead)), default=inf)
            runs = [run for run in fate.runs if run.started.time < end]
            highest = max((run.started.attempt for run in runs), default=0)
            if highest > wanted.attempts + wanted.slack:
                text = f"{id} on {wanted.label} was given to a handler as attempt {highest} of {wanted.attempts}"
                yield Violation("attempts", text, (id,))
            nexts = [*(run.started.time for run in runs[1:]), inf]
            failures = {
                run.started.attempt
                for run, until in zip(runs, nexts, strict=False)
                if run.raised and not _unheard(account, fate, run, until)
            }
            if len(failures) > wanted.attempts:
                text = f"{id} on {wanted.label} failed in {len(failures)} attempts, allowed are {wanted.attempts}"
                yield Violation("attempts", text, (id,))


def expired(account: Account) -> Iterator[Violation]:
    """No message is handled after its expiry."""
    for fate, attempt in _runs_and_attempts(account):
        for run in fate.runs:
            end = attempt.began.expires
            if end is not None and run.started.time > end + _LATE:
                if account.disturbed(run.started.who, end - _LATE, run.started.time):
                    continue  # stopped between the look at the clock and the handler's first step
                late = run.started.time - end
                text = f"{attempt.began.id} on {run.started.subscription} was started {late:.2f} s after its expiry"
                yield Violation("expired", text, (attempt.began.id,))


def early(account: Account) -> Iterator[Violation]:
    """No delayed message is handled before its time."""
    for fate, attempt in _runs_and_attempts(account):
        due = attempt.began.due
        if due is not None and fate.runs and fate.runs[0].started.time < due - _EARLY:
            soon = due - fate.runs[0].started.time
            text = f"{attempt.began.id} on {fate.runs[0].started.subscription} was started {soon:.3f} s too early"
            yield Violation("early", text, (attempt.began.id,))


def _runs_and_attempts(account: Account) -> Iterator[tuple[Fate, Attempt]]:
    """Yield messages that were published once: what was published twice has two times."""
    for fates in account.fates.values():
        for id, fate in fates.items():
            if len(attempts := account.attempts.get(id, [])) == 1:
                yield fate, attempts[0]


def repeated(account: Account) -> Iterator[Violation]:
    """An idempotent handler that succeeded does not run again, and its effect is there once.

    The exception that every store outside of the effect's own transaction has: a worker that is killed or stopped
    between its handler's end and the store's answer.
    """
    for wanted in account.subscriptions:
        if not wanted.idempotent:
            continue
        for id, fate in account.fates[wanted.label].items():
            ends = [run.ended.time for run in fate.runs if run.ended and run.succeeded and not _cut_off(account, run)]
            if len(ends) > 1 or any(run.started.time > end for run in fate.runs for end in ends):
                yield Violation("repeated", f"{id} on {wanted.label} was handled again after it was done", (id,))
            least, most = any(run.succeeded for run in fate.runs), 1 + len(fate.runs) - len(ends)
            if fate.effects is not None and not least <= fate.effects <= most:
                text = f"{id} on {wanted.label} took effect {fate.effects} times in {len(fate.runs)} runs"
                yield Violation("repeated", text, (id,))


def _unheard(account: Account, fate: Fate, run: Run, until: float) -> bool:
    who, since = run.started.who, run.started.time
    return any(e.who == who and since < e.time < until for e in fate.unburied) or _cut_off(account, run)


def _cut_off(account: Account, run: Run) -> bool:
    end = run.started.time if run.ended is None else run.ended.time
    return account.disturbed(run.started.who, run.started.time, end + _AFTERMATH)


def explained(account: Account) -> Iterator[Violation]:
    """Each dead letter's reason is borne out by the history."""
    for label, fates in account.fates.items():
        for id, fate in fates.items():
            publishes = [attempt.began for attempt in account.attempts.get(id, ())]
            for event in fate.dead:
                if publishes and not _borne_out(event, fate, publishes):
                    text = f"{id} on {label} was dead-lettered as {event.detail!r}, which nothing explains"
                    yield Violation("explained", text, (id,))
                    break


def _borne_out(dead: Event, fate: Fate, publishes: list[Event]) -> bool:
    match dead.detail:
        case "failed" | "fatal" | "rejected":
            return any(run.raised or run.ended is None for run in fate.runs)
        case "expired":
            return any(p.expires is not None and p.expires <= dead.time + _LATE for p in publishes)
        case "undecodable" | "unknown-type":
            return any(p.detail == "garbage" for p in publishes)
        case "crashed":
            return len(fate.received) > 1
        case _:
            return False


def complaints(account: Account) -> Iterator[Violation]:
    """Nobody saw anything that must not be: a wrong answer, a body that changed, a worker that did not end well."""
    for event in account.events:
        if event.kind is EventKind.COMPLAINT:
            yield Violation("complaint", f"{event.who}: {event.detail}", (event.id,) if event.id else ())


RULES: tuple[Rule, ...] = (lost, invented, order, attempts, expired, early, repeated, explained, complaints)
