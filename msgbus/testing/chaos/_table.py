"""The results of runs as a table."""

from __future__ import annotations

from collections.abc import Sequence

from msgbus.testing.chaos._run import Outcome

__all__ = ["render"]

_COLUMNS = (
    "adapter", "seed", "seconds", "published", "unknown", "refused", "handled", "dead", "faults", "redeliveries",
    "duplicates", "longest outage", "recovery", "at rest", "losses", "violations",
)  # fmt: skip


def render(outcomes: Sequence[Outcome]) -> str:
    """Return the runs as a Markdown table, one row each."""
    rows = [_COLUMNS, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def _row(outcome: Outcome) -> tuple[str, ...]:
    counts = outcome.findings.counts
    return (
        outcome.target,
        str(outcome.seed),
        f"{outcome.seconds:g}",
        str(counts.confirmed),
        str(counts.unknown),
        str(counts.failed),
        str(counts.handled),
        str(counts.dead),
        str(counts.faults),
        str(counts.redeliveries),
        str(counts.duplicates),
        f"{outcome.outage:.1f} s",
        _seconds(outcome.recovery),
        _seconds(outcome.drained),
        str(counts.lost),
        str(len(outcome.findings.violations)),
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
