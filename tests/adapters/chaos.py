"""A short chaos run under a fixed seed, for every adapter's own tests."""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgbus.testing.chaos import render, run_chaos
from scripts.brokers import BrokerMissing
from scripts.brokers.fixtures import unavailable
from scripts.chaos import target


def nothing_is_lost(name: str, folder: Path, *, seed: int, seconds: float = 6.0) -> None:
    """Break the named broker and its workers for some seconds; nothing is lost, nothing out of order."""
    try:
        with target(name, folder) as aim:
            outcome = asyncio.run(run_chaos(aim, folder, seed=seed, seconds=seconds, workers=2, rate=50))
    except BrokerMissing as exc:
        unavailable(str(exc))
    print(render([outcome]))
    outcome.raise_if_broken()
    assert outcome.findings.counts.handled > 20
    assert outcome.findings.counts.faults > 0
