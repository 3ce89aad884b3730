"""The benchmark suite measures what it says, and refuses figures of contenders that break their promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.suite import __main__ as command
from tests.bench.suite.aims import Aim, verdict
from tests.bench.suite.cases import CASES, Case, find
from tests.bench.suite.contender import AT_LEAST_ONCE, AT_MOST_ONCE
from tests.bench.suite.report import MARKER, ratio, write_page
from tests.bench.suite.results import BrokerResults, CaseResult, Entry, Surroundings
from tests.bench.suite.runner import Runner, Settings
from tests.bench.suite.schedule import Schedule

QUICK = Settings(rounds=2, seconds=0.01, fast_loop=False)


def _measure(case: str, *specs: str, settings: Settings = QUICK) -> list[Entry]:
    runner = Runner("memory://bench", specs, settings, lambda _: None)
    try:
        return runner.measure(find(case)[0])
    finally:
        runner.close()


def test_it_measures_and_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tiny case on the embedded brokers gives figures, a page that keeps its head, and JSON."""
    page = tmp_path / "benchmarks.md"
    page.write_text(f"# By hand\n\n{MARKER}\nold figures\n", encoding="utf-8")
    arguments = ["--broker", "memory,sqlite", "--case", "publish/1KiB,end-to-end", "--rounds", "2", "--seconds", "0.01"]

    assert (
        command.main([*arguments, "--loop", "asyncio", "--page", str(page), "--json", str(tmp_path / "out.json")]) == 0
    )

    text = page.read_text(encoding="utf-8")
    assert text.startswith("# By hand")
    assert "old figures" not in text
    assert "| publish and consume at once (messages/s) |" in text
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    for broker in ("memory", "sqlite"):
        ours = found[broker]["end-to-end"]["entries"][0]
        assert (ours["name"], len(ours["values"]), ours["refused"]) == ("msgbus", 2, "")
        assert min(ours["values"]) > 0
    again = BrokerResults.load(tmp_path / "benchmarks" / "sqlite.json", "sqlite")
    assert set(again.cases) == {"publish/1KiB", "end-to-end"}


def test_a_contender_that_loses_a_message_gets_no_figure() -> None:
    """It is refused by name, and the others go on."""
    settings = Settings(rounds=2, seconds=0.01, fast_loop=False, patience=6)
    loses, honest = _measure(
        "consume/1KiB",
        "tests.bench.broken:Loses",
        "tests.bench.suite.contenders.embedded:AsyncioQueue",
        settings=settings,
    )

    assert loses.median is None
    assert "never came" in loses.refused
    assert honest.median


def test_duplicates_are_counted() -> None:
    """A message that is handled twice is no loss, and is told."""
    (entry,) = _measure("consume/1KiB", "tests.bench.broken:Repeats")

    assert entry.median
    assert entry.duplicates == 2, "one in each round"


def test_who_is_not_installed_takes_no_part() -> None:
    """A missing library is told, the others are measured."""
    said: list[str] = []
    runner = Runner("memory://bench", ["tests.bench.no_such_module:Anything"], QUICK, said.append)
    runner.close()

    assert not runner.about
    assert "no_such_module" in said[0]


def test_figures_of_different_guarantees_are_never_compared(tmp_path: Path) -> None:
    """Neither a ratio nor a common table has both."""
    case = find("consume/1KiB")[0]
    ours = Entry("msgbus", "msgbus", AT_LEAST_ONCE, "", 1, [10.0], [1.0])
    equal = Entry("equal", "framework", AT_LEAST_ONCE, "", 1, [5.0], [1.0])
    careless = Entry("careless", "framework", AT_MOST_ONCE, "", 1, [100.0], [1.0])
    page = tmp_path / "page.md"
    page.write_text(MARKER, encoding="utf-8")
    result = CaseResult(case.name, Surroundings.now(fast_loop=False), [ours, equal, careless])

    write_page(page, [BrokerResults("memory", "", {}, {case.name: result})])

    assert ratio(case, ours, equal) == 2.0
    assert ratio(case, ours, careless) is None
    tables = page.read_text(encoding="utf-8").split("### ")
    assert [("careless" in table, "msgbus |" in table) for table in tables[1:]] == [(False, True), (True, False)]


def test_every_case_has_a_name_of_its_own_and_unknown_ones_are_refused() -> None:
    """Cases are found by name and by what names begin with."""
    names = [case.name for case in find("")]

    assert len(names) == len(set(names))
    assert [case.name for case in find("keyed")] == ["keyed/10", "keyed/100", "keyed/1000"]
    assert {"consume/1KiB", "consume-batch"} < {case.name for case in find("consume")}
    assert [case.name for case in find("request,latency")] == ["request", "latency"]
    with pytest.raises(ValueError, match="no case is called 'speed'"):
        find("speed")


def test_every_kind_of_case_runs() -> None:
    """One case of each kind, on the memory broker, proves its counts."""
    kinds = {case.name.partition("/")[0]: case for case in reversed(CASES) if case.fixed <= 3000}
    specs = ["tests.bench.suite.contenders.ours:Memory"]
    runner = Runner("memory://bench", specs, Settings(rounds=1, seconds=0.01, fast_loop=False), lambda _: None)
    try:
        found = {name: runner.measure(case) for name, case in kinds.items() if runner.takes_part(case)}
    finally:
        runner.close()

    refused = {name: entry.refused for name, entries in found.items() for entry in entries if entry.refused}
    assert not refused
    # What is left out needs two processes, partitions, or a network.
    assert set(kinds) - set(found) == {"memory", "slow"}


def test_who_takes_part_where() -> None:
    """Everybody in the headlines, the best of each kind in the rest, msgbus alone where only its own cost grows."""
    specs = ["tests.bench.suite.contenders.ours:Memory", "tests.bench.broken:Partial"]
    runner = Runner("memory://bench", specs, QUICK, lambda _: None)
    runner.close()

    ours, partial = specs
    assert runner.takes_part(find("consume/1KiB")[0]) == [ours, partial]
    assert runner.takes_part(find("consume/64KiB")[0]) == [ours]
    assert runner.takes_part(find("subscriptions/10")[0]) == [ours]


@pytest.mark.parametrize("slower", [0.5, 1, 3])
def test_a_whole_run_keeps_to_its_time(slower: float) -> None:
    """However long runs take beyond what they were asked for."""
    now = 0.0
    cases, contenders = find(""), [2, 7, 6]
    schedule = Schedule(cases, contenders, rounds=5, seconds=1, minutes=20, clock=lambda: now)
    for number in contenders:
        for case in cases:
            asked = schedule.seconds(case)
            runs = _runs(case, number)
            now += asked * slower * runs
            schedule.done(case, number, asked=asked, took=asked * slower * runs, runs=runs)

    assert now / 60 < 22
    assert schedule.minutes_left() == 0


def test_a_single_case_gets_all_the_time_that_it_may_have() -> None:
    """There is no reason to hurry."""
    (case,) = find("consume/1KiB")

    schedule = Schedule([case], [6], rounds=5, seconds=1, minutes=20, clock=lambda: 0.0)

    assert schedule.seconds(case) == 1


def test_aims_are_ratios_bounds_or_between_cases() -> None:
    """Each is judged by the better direction of its case."""

    def result(case: str, ours: float, theirs: float | None = None) -> CaseResult:
        entries = [Entry("msgbus", "msgbus", AT_LEAST_ONCE, "", 1, [ours], [0.0])]
        entries += [Entry("kombu", "raw client", AT_LEAST_ONCE, "", 1, [theirs], [0.0])] if theirs else []
        return CaseResult(case, Surroundings.now(fast_loop=False), entries)

    cases = [result("consume/1KiB", 30, 10), result("import-alone", 50), result("slow/64", 640), result("slow/1", 10)]
    found = [BrokerResults("x", "", {}, {case.case: case for case in cases})]

    assert verdict(Aim("x", "consume/1KiB", "kombu", 1), found) == 3
    assert verdict(Aim("x", "import-alone", "100 ms", 1, bound=100), found) == 2
    assert verdict(Aim("x", "slow/64", "one at a time", 50, beside="slow/1"), found) == 64
    assert verdict(Aim("x", "consume/1KiB", "nobody", 1), found) is None
    assert verdict(Aim("y", "consume/1KiB", "kombu", 1), found) is None


def _runs(case: Case, contenders: int) -> int:
    return (1 if case.alone else contenders if case.headline else min(contenders, 3)) * 7
