"""`make bench`: measure, print, and write docs/benchmarks.md with its charts.

Usage: python -m tests.bench.suite [--broker NAME,NAME] [--case NAME,NAME] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.brokers import BrokerError, broker_class, start
from tests.bench.suite.cases import Case, find
from tests.bench.suite.chart import draw
from tests.bench.suite.contenders import CONTENDERS, SERVERS
from tests.bench.suite.report import summary, write_page
from tests.bench.suite.results import BrokerResults, CaseResult, Surroundings
from tests.bench.suite.runner import Runner, Settings
from tests.bench.suite.schedule import Schedule

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for."""
    options = _parser().parse_args(arguments)
    try:
        cases = find(options.case)
    except ValueError as exc:
        sys.exit(str(exc))
    brokers = options.broker.split(",") if options.broker else list(CONTENDERS)
    if unknown := [broker for broker in brokers if broker not in CONTENDERS]:
        sys.exit(f"no benchmark for {', '.join(unknown)}; there are: {', '.join(CONTENDERS)}")
    page: Path = options.page
    measured = {} if options.report else _measure_all(brokers, cases, options)
    if options.json:
        results = {broker: {name: asdict(case) for name, case in found.items()} for broker, found in measured.items()}
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if not options.dry:
        _report(page)
    return 0


def _measure_all(
    brokers: Sequence[str], cases: Sequence[Case], options: argparse.Namespace
) -> dict[str, dict[str, CaseResult]]:
    folder = options.page.with_suffix("")
    settings = Settings(options.rounds, options.seconds, options.loop == "uvloop", options.patience)
    brokers = list(reversed(brokers))  # the slow ones first: what they leave of the time is the others'
    contenders = [len(CONTENDERS[broker]) for broker in brokers]
    schedule = Schedule(cases, contenders, rounds=settings.rounds, seconds=settings.seconds, minutes=options.minutes)
    measured: dict[str, dict[str, CaseResult]] = {}
    for broker in brokers:
        kept = folder / f"{broker}.json"
        found = BrokerResults.load(kept, broker)
        try:
            if options.install and broker in SERVERS:
                broker_class(SERVERS[broker]).install()
            save = None if options.dry else kept
            measured[broker] = _measure(found, cases, settings, options.only, save, schedule)
        except BrokerError as exc:
            print(f"{broker}: {exc}")
    return measured


def _report(page: Path) -> None:
    folder = page.with_suffix("")
    results = [BrokerResults.load(folder / f"{broker}.json", broker) for broker in CONTENDERS]
    for found in results:
        try:
            draw(found, folder / found.broker)
        except ModuleNotFoundError as exc:
            print(f"no chart: {exc} (it is in the dependency group 'bench')")
            break
    write_page(page, results)


def _measure(
    found: BrokerResults,
    cases: Sequence[Case],
    settings: Settings,
    only: str,
    kept: Path | None,
    schedule: Schedule,
) -> dict[str, CaseResult]:
    """Measure the cases on one broker, add each to *found* and to the file *kept*, and return them."""
    measured: dict[str, CaseResult] = {}
    wanted = _chosen(CONTENDERS[found.broker], only)
    print(f"{found.broker}: starting", flush=True)
    with _running(found.broker) as (url, version), contextlib.closing(_Team(url, wanted, settings)) as team:
        found.version = version
        found.versions = {name: text for about in team.about.values() for name, text in about.versions.items()}
        for case in cases:
            began, seconds = time.monotonic(), schedule.seconds(case)
            if team.takes_part(case):
                print(f"{found.broker}: {case.title} (about {schedule.minutes_left():.0f} min left)", flush=True)
                around = Surroundings.now(fast_loop=settings.fast_loop)
                result = CaseResult(case.name, around, team.measure(case, seconds))
                measured[case.name] = found.cases[case.name] = result
                print("\n".join(summary(case, result)), flush=True)
                if kept:
                    found.save(kept)
            took = time.monotonic() - began
            schedule.done(case, len(CONTENDERS[found.broker]), asked=seconds, took=took, runs=team.runs(case))
    return measured


def _chosen(specs: Sequence[str], only: str) -> list[str]:
    """Return the contenders that *only* names, all if it names none."""
    names = {spec.rpartition(".")[2]: spec for spec in specs}
    wanted = only.split(",") if only else list(names)
    if not (chosen := [names[name] for name in wanted if name in names]):
        sys.exit(f"no contender {only} there; there are: {', '.join(names)}")
    return chosen


class _Team(Runner):
    """A runner that talks."""

    def __init__(self, url: str, specs: Sequence[str], settings: Settings) -> None:
        super().__init__(url, specs, settings, lambda line: print(line, flush=True))


@contextlib.contextmanager
def _running(broker: str) -> Iterator[tuple[str, str]]:
    """Yield the broker's URL and what it says of its version."""
    if broker == "memory":
        yield "memory://bench", ""
    elif broker == "sqlite":
        with tempfile.TemporaryDirectory(prefix="msgbus-bench-") as folder:
            yield f"sqlite:///{folder}/bench.db", _sqlite_version()
    else:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            os.environ.setdefault(name, "any")  # no emulator checks them, no client goes without
        with start(SERVERS[broker]) as running:
            yield running.url, _version(broker, running.url)


def _sqlite_version() -> str:
    import sqlite3

    return f"SQLite {sqlite3.sqlite_version}, a file in {os.path.realpath(tempfile.gettempdir())}"


def _version(broker: str, url: str) -> str:
    from tests.bench.suite.versions import version_of

    return version_of(broker, url)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", default="", help=f"of {', '.join(CONTENDERS)}; all if not given")
    parser.add_argument("--case", default="", help="cases, or what they begin with; all if not given")
    parser.add_argument("--only", default="", help="contenders, as module:Class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="what a run of a headline takes at most")
    parser.add_argument("--minutes", type=float, default=18.0, help="what everything together should take")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds after which a run is given up")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="everybody's event loop")
    parser.add_argument("--json", type=Path, help="write what was measured in this run")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--install", action="store_true", help="install the brokers that are missing")
    parser.add_argument("--dry", action="store_true", help="print only, write no page")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page from what there is")
    return parser


if __name__ == "__main__":
    sys.exit(main())
