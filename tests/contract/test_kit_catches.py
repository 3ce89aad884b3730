"""The kit can fail: each broken adapter and store is caught by the check that is there for it."""

from __future__ import annotations

import asyncio
import re
import sys
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path

import pytest

from msgbus.testing import Harness, StoreHarness, VirtualClock
from msgbus.testing._check import load_checks, load_store_checks
from msgbus.testing.runner import prove, prove_store

MODULE = "broken"
CAUGHT = {
    "ConfirmsWithoutStoring": "A3 A4 A16",
    "StoresTwice": "A2 B1",
    "DropsHeaders": "A21",
    "LeaksHeaders": "A20",
    "WrapsBodies": "A7",
    "TakesAnySize": "A9",
    "FailsWholeBatches": "A11",
    "CreatesOnPublish": "A11 M6",
    "WorksAfterClose": "A12",
    "CannotWake": "A17",
    "LosesOnCancel": "A15",
    "LosesSecondNack": "C2 D7 N1",
    "NacksWholeBatch": "C4",
    "IsEarly": "C3 D3 D6 N1",
    "PublishesEarly": "A27 N1",
    "BlocksBehindDelays": "C12",
    "CountsReleases": "C11 D8 N1",
    "LosesAtClose": "C6 N1",
    "IgnoresPrefetch": "C13",
    "LateAckCounts": "G3",
    "LateNackCopies": "G4",
    "ForgetsToExtend": "G2 G6 G7",
    "ReordersKeys": "F2 N2",
    "SharesKeys": "F3 M3",
    "DoesNotPark": "F11 F12",
    "LosesDeadLetters": "E1 E10 D2 N1",
    "StripsDeadLetters": "E1 E11",
    "ReplaysToAll": "B6 E7 N3",
    "RetriesToAll": "D9",
    "CutsNames": "M7",
    "CreatesOnVerify": "M4",
    "IgnoresDifferences": "M3",
    "LeavesATask": "H24",
    "BrowsesUndeclared": "M36",
    "ForgetsDelayedAtClose": "N1",
}
SOUND = {"BeginsTasks": "H24"}
"""These are only unusual, and their checks pass."""
LOSSES = {
    "ConfirmsWithoutStoring", "LosesOnCancel", "LosesSecondNack", "LosesAtClose", "LosesDeadLetters", "LeavesATask",
}  # fmt: skip
"""What these do wrong shows by something that never comes; all others must not be caught by mere slowness."""
STORES_CAUGHT = {
    "ClaimMarksDone": "S5",
    "LateCompletionWins": "S8 S9",
    "AnybodyReleases": "S6",
    "NoFingerprint": "S13",
    "LeasesNeverEnd": "S7",
    "ForgetsReplies": "S4",
    "JoinsScopes": "S14",
    "RacesItself": "S1",
    "PurgesEverything": "S17",
    "NoTakeoverOfOwn": "S10",
}


class Plugins(DistributionFinder):
    """The broken ones as an installed package: found by entry points like any other."""

    def find_spec(self, name, path=None, target=None):
        return None

    def find_distributions(self, context=None):
        return [_Package()]


class _Package(Distribution):
    def read_text(self, filename):
        if filename == "entry_points.txt":
            groups = {"msgbus.adapters": CAUGHT | SOUND, "msgbus.stores": STORES_CAUGHT}
            return "\n".join(
                line
                for group, names in groups.items()
                for line in (f"[{group}]", *(f"{name.lower()} = {MODULE}:{name}" for name in names))
            )
        return "Metadata-Version: 2.1\nName: broken\nVersion: 1\n" if filename == "METADATA" else None

    def locate_file(self, path):
        return path


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(sys, "meta_path", [Plugins(), *sys.meta_path])


def pairs(table):
    return [(name, check_id) for name, ids in table.items() for check_id in ids.split()]


def run_check(name, check_id):
    (check,) = [c for c in load_checks() if c.id == check_id]
    harness = Harness(
        url=f"{name.lower()}://kit", tick=0.1, lease=0.4, patience=0.1, virtual=True, store_url="memory://kit"
    )
    asyncio.run(prove(check, harness))


@pytest.mark.parametrize(("name", "check_id"), pairs(CAUGHT))
def test_a_broken_adapter_is_caught(name, check_id):
    """The check fails on the adapter that breaks its clause."""
    with pytest.raises((AssertionError, ExceptionGroup)) as caught:
        run_check(name, check_id)

    error = caught.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, AssertionError)
    assert name in LOSSES or not re.search(r"gave \d+ of|never became true", str(error))


@pytest.mark.parametrize(("name", "check_id"), pairs(SOUND))
def test_what_is_only_unusual_passes(name, check_id):
    """The check does not blame an adapter for what it may do."""
    run_check(name, check_id)


@pytest.mark.parametrize(("name", "check_id"), pairs(STORES_CAUGHT))
def test_a_broken_store_is_caught(name, check_id):
    """The check fails on the store that breaks its clause."""
    (check,) = [c for c in load_store_checks() if c.id == check_id]

    with pytest.raises(AssertionError):
        asyncio.run(prove_store(check, StoreHarness(f"{name.lower()}://kit", clock=VirtualClock(), unit=1.0)))


def test_every_section_catches_something():
    """There is a broken one for every section that has a memory broker's promise in it."""
    caught = {check_id[0] for _, check_id in [*pairs(CAUGHT), *pairs(STORES_CAUGHT)]}

    assert caught == {"A", "B", "C", "D", "E", "F", "G", "H", "M", "N", "S"}
