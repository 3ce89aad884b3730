"""Writes docs/benchmarks.md from what was measured. The text above the marker is written by hand and stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.suite.aims import AIMS, Aim, verdict
from tests.bench.suite.cases import CASES, Case
from tests.bench.suite.contender import AT_LEAST_ONCE
from tests.bench.suite.reasons import REASONS, UNKNOWN, why
from tests.bench.suite.results import BrokerResults, CaseResult, Entry

__all__ = ["MARKER", "ratio", "summary", "write_page"]

MARKER = "<!-- The rest is written by `make bench`. -->"
_NOISE = "**No more than the spread** of the rounds: neither ahead nor behind."
_TITLES = {
    "memory": "Memory",
    "sqlite": "SQLite",
    "rabbitmq": "RabbitMQ",
    "nats": "NATS JetStream",
    "kafka": "Kafka",
    "aws": "SQS",
}


def ratio(case: Case, ours: Entry | None, other: Entry) -> float | None:
    """Return how many times as good as *other* msgbus is, or None where that says nothing.

    Only figures of one guarantee class are compared.
    """
    if ours is None or ours is other or ours.guarantee != other.guarantee:
        return None
    mine, theirs = ours.median, other.median
    if mine is None or theirs is None or mine <= 0 or theirs <= 0:
        return None
    return mine / theirs if case.more_is_better else theirs / mine


def ours_of(entries: Sequence[Entry]) -> Entry | None:
    """Return msgbus's own entry."""
    return next((entry for entry in entries if entry.is_ours), None)


def summary(case: Case, result: CaseResult) -> Iterator[str]:
    """Yield lines for a terminal."""
    ours = ours_of(result.entries)
    for entry in result.entries:
        if entry.median is None:
            yield f"  {entry.name:26} no figure: {entry.refused}"
            continue
        against = ratio(case, ours, entry)
        notes = [f"+-{entry.spread:.0%}"]
        notes += [f"msgbus {against:.2f}x"] if against else []
        notes += [f"{entry.cpu[0]:.0f} us CPU"] if entry.cpu[0] else []
        notes += [f"{name} {_number(values[0])}" for name, values in entry.more.items()]
        notes += [f"{entry.duplicates} duplicates"] if entry.duplicates else []
        notes += [entry.guarantee.upper()] if entry.guarantee != AT_LEAST_ONCE else []
        yield f"  {entry.name:26} {_number(entry.median):>10} {case.unit:11} {', '.join(notes)}"


def write_page(path: Path, results: Sequence[BrokerResults]) -> None:
    """Write everything below the marker of the page anew."""
    head, marker, _ = path.read_text(encoding="utf-8").partition(MARKER)
    if not marker:
        raise ValueError(f"{path} has no line {MARKER!r}")
    lines = [*_aims(results), *_behind(results)]
    for found in results:
        lines += _broker(found, path)
    path.write_text(head + MARKER + "\n\n" + "\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _aims(results: Sequence[BrokerResults]) -> Iterator[str]:
    yield "## What is aimed at\n"
    yield "| broker | case | against | aim | measured | |"
    yield "|---|---|---|---|---|---|"
    for aim in AIMS:
        measured = verdict(aim, results)
        cells = "not measured | " if measured is None else f"{_times(measured)} | {_mark(aim, measured)}"
        yield f"| {_TITLES[aim.broker]} | {_title(aim.case)} | {aim.against} | {_times(aim.least)} | {cells} |"
    yield ""


def _mark(aim: Aim, measured: float) -> str:
    return "met" if measured >= aim.least else "**missed**"


def _behind(results: Sequence[BrokerResults]) -> Iterator[str]:
    yield "## Where msgbus is slower, and why\n"
    yield "Every comparison below 1, beside contenders with the same guarantee.\n"
    found: dict[str, list[str]] = {}
    for broker in results:
        for case in CASES:
            for entry, against, noise in _comparisons(case, broker):
                if round(against, 2) < 1:  # as it is written
                    text = _NOISE if against > 1 - noise else why(broker.broker, case.name, entry.name)
                    place = f"{_TITLES[broker.broker]}, {case.title}, {entry.name} {_times(against)}"
                    found.setdefault(text, []).append(place)
    if not found:
        yield "Nowhere.\n"
    for text in [*(reason.text for reason in REASONS), UNKNOWN, _NOISE]:
        if places := found.get(text):
            yield f"- {text}\n  ({'; '.join(places)})"
    yield ""


def _comparisons(case: Case, broker: BrokerResults) -> Iterator[tuple[Entry, float, float]]:
    """Yield who msgbus is compared with, how many times as good it is, and how much of that may be noise."""
    result = broker.cases.get(case.name)
    if result is None:
        return
    ours = ours_of(result.entries)
    for entry in result.entries:
        if ours is not None and (against := ratio(case, ours, entry)) is not None:
            yield entry, against, min(ours.spread + entry.spread, 0.5)


def _broker(found: BrokerResults, page: Path) -> Iterator[str]:
    title = _TITLES[found.broker]
    measured = [found.cases[case.name] for case in CASES if case.name in found.cases]
    if not measured:
        return
    yield f"## {title}\n"
    yield _surroundings(found, measured) + "\n"
    chart = f"{page.stem}/{found.broker}"
    if (page.parent / f"{chart}.svg").exists():
        yield f"![msgbus beside the others on {title}]({chart}.svg)\n"
        yield f"([as PNG]({chart}.png), [the figures as JSON]({chart}.json))\n"
    for guarantee in sorted({e.guarantee for result in measured for e in result.entries}):
        yield from _table(found, guarantee)


def _surroundings(found: BrokerResults, measured: Sequence[CaseResult]) -> str:
    around = [result.surroundings for result in measured]
    dates, busy = sorted(a.date for a in around), sorted(a.busy for a in around)
    rounds = sorted({entry.rounds for result in measured for entry in result.entries})
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))
    return (
        f"{found.version + '; ' if found.version else ''}{versions}. Measured {dates[0]} to {dates[-1]} on "
        f"{'; '.join(sorted({a.machine for a in around}))}, {'; '.join(sorted({a.python for a in around}))}, "
        f"{' and '.join(sorted({a.loop for a in around}))}; {' to '.join(str(r) for r in {rounds[0], rounds[-1]})} "
        f"rounds; load average before a case {busy[0]:.1f} to {busy[-1]:.1f}."
    )


def _table(found: BrokerResults, guarantee: str) -> Iterator[str]:
    entries = {e.name: e for result in found.cases.values() for e in result.entries if e.guarantee == guarantee}
    if not entries:
        return
    yield f"### {_TITLES[found.broker]}: {guarantee}\n"
    if guarantee != AT_LEAST_ONCE:
        yield "A weaker promise than msgbus's: these figures are no comparison with the others.\n"
    yield f"| case | {' | '.join(entries)} |"
    yield f"|---|{'---|' * len(entries)}"
    notes: list[str] = []
    for case in CASES:
        if case.name not in found.cases:
            continue
        result = found.cases[case.name]
        cells = [_cell(case, result, name, notes) for name in entries]
        if any(cells):
            yield f"| {case.title} ({case.unit}) | {' | '.join(cells)} |"
    yield ""
    for name, entry in entries.items():
        if entry.settings:
            yield f"- {name}: {entry.settings}."
    for note in dict.fromkeys(notes):
        yield f"- {note}."
    yield ""


def _cell(case: Case, result: CaseResult, name: str, notes: list[str]) -> str:
    entry = next((entry for entry in result.entries if entry.name == name), None)
    if entry is None:
        return ""
    if entry.median is None:
        notes.append(f"{name}, {case.title}: no figure, {entry.refused}")
        return "no figure"
    text = f"{_number(entry.median)} ±{entry.spread:.0%}"
    if (against := ratio(case, ours_of(result.entries), entry)) is not None:
        text += f" ({_times(against)})"
    if entry.more:
        more = {key.replace("_", " "): sorted(values)[len(values) // 2] for key, values in entry.more.items()}
        text += "; " + ", ".join(f"{key} {_number(value)}" for key, value in more.items())
    if entry.duplicates:
        text += f"; {entry.duplicates} duplicates"
    return text


def _title(name: str) -> str:
    return next(case.title for case in CASES if case.name == name)


def _times(value: float) -> str:
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
