"""What is aimed at, as ratios within one run: absolute figures are the machine's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.suite.contender import Kind
from tests.bench.suite.results import BrokerResults

__all__ = ["AIMS", "Aim", "verdict"]


@dataclass(frozen=True)
class Aim:
    """One ratio.

    Attributes:
        against: Names begin with it, or it is a kind: the best of them counts.
        least: How many times as fast msgbus shall be.
    """

    broker: str
    case: str
    against: str
    least: float


_FASTSTREAM, _RAW = "FastStream", str(Kind.RAW)

AIMS = (
    Aim("rabbitmq", "publish/1KiB", _FASTSTREAM, 4),
    Aim("rabbitmq", "drain/1KiB", _FASTSTREAM, 4),
    Aim("rabbitmq", "end-to-end", _FASTSTREAM, 3),
    Aim("rabbitmq", "request-100", _FASTSTREAM, 20),
    Aim("rabbitmq", "publish/1KiB", "kombu", 1),
    Aim("rabbitmq", "drain/1KiB", "kombu", 1),
    Aim("nats", "publish/1KiB", _FASTSTREAM, 4),
    Aim("nats", "drain/1KiB", _FASTSTREAM, 2),
    Aim("nats", "end-to-end", _FASTSTREAM, 3),
    Aim("nats", "publish/1KiB", _RAW, 1),
    Aim("nats", "drain/1KiB", _RAW, 1),
    Aim("kafka", "publish/1KiB", _FASTSTREAM, 4),
    Aim("kafka", "drain/1KiB", "FastStream, message by message", 20),
    Aim("kafka", "end-to-end", _FASTSTREAM, 3),
    Aim("kafka", "publish/1KiB", _RAW, 0.8),
    Aim("kafka", "drain/1KiB", _RAW, 0.7),
)


def verdict(aim: Aim, results: Sequence[BrokerResults]) -> float | None:
    """Return the ratio that was measured, None if it was not."""
    cases = [broker.cases for broker in results if broker.broker == aim.broker]
    found = next((case[aim.case] for case in cases if aim.case in case), None)
    if found is None:
        return None
    ours = next((e.median for e in found.entries if e.is_ours), None)
    guarantee = next((e.guarantee for e in found.entries if e.is_ours), "")
    others = [
        e.median
        for e in found.entries
        if e.median and e.guarantee == guarantee and (e.kind == aim.against or e.name.startswith(aim.against))
    ]
    return ours / max(others) if ours and others else None
