"""The benchmark suite measures what it says, and refuses figures of contenders that break their promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.suite import __main__ as command
from tests.bench.suite.cases import find
from tests.bench.suite.contender import AT_LEAST_ONCE, AT_MOST_ONCE
from tests.bench.suite.report import MARKER, ratio, write_page
from tests.bench.suite.results import BrokerResults, CaseResult, Entry, Surroundings
from tests.bench.suite.runner import Runner, Settings

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
    """Cases are found by name and by family."""
    names = [case.name for case in find("")]

    assert len(names) == len(set(names))
    assert [case.name for case in find("keyed")] == ["keyed/10", "keyed/100", "keyed/1000"]
    with pytest.raises(ValueError, match="no case is called 'speed'"):
        find("speed")
