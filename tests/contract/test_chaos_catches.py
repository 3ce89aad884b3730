"""A chaos run can fail: adapters that break one promise are caught, and a sound one is not."""

from __future__ import annotations

import asyncio

import pytest

from msgbus.testing.chaos import Step, Target, make_schedule, run_chaos
from msgbus.testing.history import HistoryError
from tests.contract.test_kit_catches import plugins

__all__ = ["plugins"]

TERM = [Step(0.5, "term", 0.0, 0.5), Step(1.5, "term", 0.0, 0.1)]

SEEDS = range(7, 17)
"""One run catches them a dozen times over; one that a stalled machine spoiled proves nothing, so there is another."""


def chaos(scheme, base, seed):
    folder = base / str(seed)
    folder.mkdir()
    target = Target(name=scheme, url=f"{scheme}://chaos", store_url=f"memory://{scheme}-{seed}", patience=0.05)
    return asyncio.run(run_chaos(target, folder, seed=seed, seconds=3, workers=2, rate=100, steps=TERM))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("ConfirmsWithoutStoring", "lost"),
        ("LosesDeadLetters", "lost"),
        ("SharesKeys", "order"),
        ("PublishesEarly", "early"),
    ],
)
def test_a_broken_adapter_is_caught(name, rule, tmp_path):
    """The rule that is there for it is broken, and the history says where."""
    for seed in SEEDS:
        outcome = chaos(name.lower(), tmp_path, seed)
        if rule in {violation.rule for violation in outcome.findings.violations}:
            break

    with pytest.raises(HistoryError, match=f"{rule}: "):
        outcome.raise_if_broken()


def test_a_schedule_is_its_seeds(tmp_path):
    """The same seed gives the same faults, another one others; none lasts beyond the end."""
    faults = ("kill", "stop", "proxy cut")
    schedule = make_schedule(7, 60, faults)

    assert schedule == make_schedule(7, 60, faults)
    assert schedule != make_schedule(8, 60, faults)
    assert {step.what for step in schedule} == set(faults)
    assert all(step.at + step.seconds <= 60 for step in schedule)
    assert make_schedule(7, 60, ()) == []
