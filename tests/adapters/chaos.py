"""A short chaos run under a fixed seed, for every adapter's own tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from msgbus.testing.chaos import render, run_chaos
from scripts.brokers import BrokerMissing
from scripts.brokers.fixtures import unavailable
from scripts.chaos import target

_PATIENCE = 3
"""Multiplies all deadlines: a slow machine may take its time."""


def nothing_is_lost(name: str, folder: Path, *, seed: int, seconds: float = 4.0) -> None:
    """Break the named broker and its workers for some seconds; nothing is lost, nothing out of order.

    Seed 2940 has short faults and a server's SIGKILL as the last one: the test is short, too.
    """
    try:
        with target(name, folder) as found:
            aim = replace(found, patience=_PATIENCE * found.patience)
            outcome = asyncio.run(run_chaos(aim, folder, seed=seed, seconds=seconds, workers=2, rate=50))
    except BrokerMissing as exc:
        unavailable(str(exc))
    print(render([outcome]))
    outcome.raise_if_broken()
    assert outcome.findings.counts.handled > 0
    assert outcome.findings.counts.faults > 0
