"""What is aimed at, as ratios within one run: absolute figures are the machine's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.suite.cases import CASES
from tests.bench.suite.contender import Kind
from tests.bench.suite.results import BrokerResults, Entry

__all__ = ["AIMS", "Aim", "verdict"]


@dataclass(frozen=True)
class Aim:
    """One ratio.

    Attributes:
        broker: Where.
        case: What of msgbus.
        against: Who: names begin with it, or it is a kind; the best of them counts. Or how the bound is called.
        least: How many times as good msgbus shall be.
        beside: Another case of msgbus's own that it is compared with.
        bound: A figure that it is compared with, in the case's unit.
    """

    broker: str
    case: str
    against: str
    least: float
    beside: str = ""
    bound: float = 0.0


_FASTSTREAM, _RAW = "FastStream", str(Kind.RAW)

AIMS = (
    Aim("memory", "dispatch", "8 us", 1, bound=8),
    Aim("memory", "import-alone", "100 ms", 1, bound=100),
    Aim("rabbitmq", "publish/1KiB", _FASTSTREAM, 4),
    Aim("rabbitmq", "consume/1KiB", _FASTSTREAM, 4),
    Aim("rabbitmq", "end-to-end", _FASTSTREAM, 3),
    Aim("rabbitmq", "request-100", _FASTSTREAM, 20),
    Aim("rabbitmq", "request-500", _FASTSTREAM, 20),
    Aim("rabbitmq", "publish/1KiB", "kombu", 1),
    Aim("rabbitmq", "consume/1KiB", "kombu", 1),
    Aim("nats", "publish/1KiB", _FASTSTREAM, 4),
    Aim("nats", "consume/1KiB", _FASTSTREAM, 2),
    Aim("nats", "end-to-end", _FASTSTREAM, 3),
    Aim("nats", "request-100", _FASTSTREAM, 2),
    Aim("nats", "publish/1KiB", _RAW, 1),
    Aim("nats", "consume/1KiB", _RAW, 1),
    Aim("nats", "request", _RAW, 0.77),
    Aim("kafka", "publish/1KiB", _FASTSTREAM, 4),
    Aim("kafka", "consume/1KiB", _FASTSTREAM, 20),
    Aim("kafka", "end-to-end", _FASTSTREAM, 3),
    Aim("kafka", "publish/1KiB", _RAW, 0.8),
    Aim("kafka", "consume-batch", _RAW, 0.7),
    Aim("kafka", "slow/64", "one at a time", 50, beside="slow/1"),
    Aim("kafka", "one-partition/10000", "10,000 in 1 s", 1, bound=10_000),
    Aim("aws", "publish/1KiB", "boto3, one by one", 5),
    Aim("aws", "consume/1KiB", "boto3, one by one", 3),
    Aim("aws", "publish/1KiB", "boto3, batches", 1),
    Aim("aws", "consume/1KiB", "boto3, batches", 1),
)


def verdict(aim: Aim, results: Sequence[BrokerResults]) -> float | None:
    """Return the ratio that was measured, None if it was not."""
    cases = next((broker.cases for broker in results if broker.broker == aim.broker), {})
    entries = cases[aim.case].entries if aim.case in cases else []
    ours = _ours(entries)
    if ours is None or not ours.median:
        return None
    if aim.bound:
        other: float | None = aim.bound
    elif aim.beside:
        beside = _ours(cases[aim.beside].entries) if aim.beside in cases else None
        other = beside.median if beside else None
    else:
        other = _best(aim, ours, entries)
    if not other:
        return None
    return ours.median / other if _more_is_better(aim.case) else other / ours.median


def _ours(entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in entries if entry.is_ours), None)


def _best(aim: Aim, ours: Entry, entries: Sequence[Entry]) -> float | None:
    """Return the best figure of those that promise as much."""
    found = [
        entry.median
        for entry in entries
        if entry.median
        and entry.guarantee == ours.guarantee
        and (entry.kind == aim.against or entry.name.startswith(aim.against))
    ]
    if not found:
        return None
    return max(found) if _more_is_better(aim.case) else min(found)


def _more_is_better(name: str) -> bool:
    return next(case.more_is_better for case in CASES if case.name == name)
