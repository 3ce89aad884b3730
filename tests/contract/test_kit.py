"""The kit itself: its registry, its runner without pytest, and its virtual clock."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import pytest

from msgbus.adapter import Capabilities
from msgbus.testing import Harness, VirtualClock, run_contract
from msgbus.testing._check import check, load_checks, load_store_checks, unmet
from msgbus.testing.runner import prove


def test_every_check_states_its_clause_once():
    """Ids and names are unique, clauses are whole sentences, needs name real capabilities and hooks."""
    checks = [*load_checks(), *load_store_checks()]

    assert len({c.id for c in checks}) == len(checks)
    assert len({c.name for c in checks}) == len(checks)
    for c in checks:
        assert re.fullmatch(r"[A-Z]\d+", c.id)
        assert re.fullmatch(r"[A-Z`].*\.", c.clause), f"{c}: {c.clause!r}"
        unmet(c.needs, Capabilities(), Harness(url="memory://"))


def test_every_capability_has_a_check():
    """What an adapter can declare is proved, or refused where it is not declared."""
    needed = {need.lstrip("!").partition("=")[0] for c in load_checks() for need in c.needs}
    limits = {"max_body", "max_batch", "max_settle", "publish_window"}  # kept to by all checks
    unproved = {"ttl", "priority", "provision"}  # nothing portable can be asked for by them

    assert set(Capabilities.__slots__) - limits - unproved <= needed


def test_needs():
    """A need is a capability, one with a value, one that is absent, or a hook."""
    harness = Harness(url="memory://")
    some = Capabilities(order="key", max_delay=5)

    assert unmet(["max_delay", "order=key", "order", "!browse"], some, harness) == ""
    assert unmet(["lease"], some, harness) == "lease is not declared"
    assert unmet(["order=queue"], some, harness) == "order=queue is not declared"
    assert unmet(["!max_delay"], some, harness) == "max_delay is declared"
    assert unmet(["hook:restart"], some, harness) == "the harness does not supply restart"


def test_the_runner_reports_each_check():
    """`run_contract` gives a result per check, tells it at once, and counts refusals apart."""
    told = []
    results = asyncio.run(run_contract(Harness(url="memory://kit", tick=0.05), on_result=told.append, sections="B"))

    assert told == results
    assert {r.status for r in results} == {"passed", "skipped"}
    assert [r.id.split("-")[0] for r in results] == [c.id for c in load_checks("B")]
    assert all(r.reason for r in results if r.status == "skipped")


def test_a_failure_says_what_does_not_hold():
    """A failed check's result has a reason, even when the assertion has no text."""

    @check("Z1")
    async def fails(t):
        """It fails."""
        raise AssertionError

    from msgbus.testing.runner import _result

    result = asyncio.run(_result(fails.__check__, prove(fails.__check__, Harness(url="memory://"))))

    assert (result.status, result.clause) == ("failed", "It fails.")
    assert result.reason == "this does not hold: raise AssertionError"
    assert "Traceback" in result.detail


def test_duplicates_beyond_the_bound_fail():
    """Duplicates are counted, allowed up to the check's and the harness's bound, and fail above."""

    @check("Z2", duplicates=1)
    async def doubles(t):
        """It gets three duplicates."""
        t.count_handled([1, 1, 1, 1], [1])

    assert asyncio.run(prove(doubles.__check__, Harness(url="memory://", duplicates=2))).duplicates == 3
    with pytest.raises(AssertionError, match="3 messages came again"):
        asyncio.run(prove(doubles.__check__, Harness(url="memory://", duplicates=1)))


def test_the_checks_need_no_pytest():
    """The runner works, and imports neither pytest nor Hypothesis, where a command line uses it."""
    script = (
        "import asyncio, sys; from msgbus.testing import Harness, run_contract\n"
        "results = asyncio.run(run_contract(Harness(url='memory://kit', tick=0.05), sections='L'))\n"
        "print(sorted({r.status for r in results}), 'pytest' in sys.modules, 'hypothesis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "['passed'] False False"


def test_the_clock_wakes_sleepers_in_order():
    """Sleepers wake in the order of their time, each at its time, and see what the ones before them did."""

    async def main():
        clock, seen = VirtualClock(start=100), []

        async def sleeper(delay):
            await clock.sleep(delay)
            seen.append((delay, clock.now()))
            if delay == 2:
                await sleeper(1.5)

        tasks = [asyncio.create_task(sleeper(delay)) for delay in (3, 1, 2)]
        await clock.advance(2.5)
        halfway = list(seen), clock.now(), clock.next_due
        await clock.advance(10)
        await asyncio.gather(*tasks)
        return halfway, seen, clock.now(), clock.monotonic(), clock.next_due

    halfway, seen, now, monotonic, due = asyncio.run(main())

    assert halfway == ([(1, 101), (2, 102)], 102.5, 103)
    assert seen == [(1, 101), (2, 102), (3, 103), (1.5, 103.5)]
    assert (now, monotonic, due) == (112.5, 12.5, None)


def test_a_cancelled_sleeper_is_forgotten():
    """A sleeper that was cancelled is no reason to stop the clock."""

    async def main():
        clock = VirtualClock()
        task = asyncio.create_task(clock.sleep(5))
        await clock.settle()
        task.cancel()
        await asyncio.wait([task])
        return clock.next_due

    assert asyncio.run(main()) is None
