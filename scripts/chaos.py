"""Break brokers under load and check that nothing is lost: ``python -m scripts.chaos [NAME,NAME...]``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgbus.testing.chaos import BROKER_FAULTS, Outcome, Target, render, run_chaos
from scripts import report
from scripts.brokers import BrokerError, make

__all__ = ["TARGETS", "main", "target"]

_OPTIONS = {
    "rabbitmq": "?heartbeat=2",
    "nats": "",
    "kafka": "?partitions=4&session_timeout=6",
    "ministack": "&wait=1&timeout=5",
    "fauxqs": "&wait=1&timeout=5",
}
"""Each server broker's name, and the URL options that let its clients notice a fault soon."""
_FORGETFUL = {"ministack": ("restart", "stop"), "fauxqs": ("stop",)}
"""Servers that do not keep their data when they are killed (or at all), and what may be done to them."""
TARGETS = ("memory", "sqlite", *_OPTIONS)
DEFAULT = tuple(name for name in TARGETS if name != "fauxqs")  # one server for each adapter


@contextlib.contextmanager
def target(name: str, folder: Path) -> Iterator[Target]:
    """Start the named broker behind a proxy and give the target for it.

    Args:
        name: One of `TARGETS`.
        folder: For the data of embedded brokers.

    Raises:
        BrokerError: It cannot be started.
    """
    if name == "memory":
        yield Target(name=name, url=f"memory://chaos-{folder.name}", store_url=f"memory://chaos-{folder.name}")
    elif name == "sqlite":
        yield Target(name=name, url=f"sqlite:///{folder}/bus.db")
    elif name not in _OPTIONS:
        raise BrokerError(f"no broker is called {name!r}; there are: {', '.join(TARGETS)}")
    else:
        os.environ.setdefault("AWS_ACCESS_KEY_ID", "any")  # emulators check none, and boto3 refuses to work without
        os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "any")
        with make(name) as broker, broker.proxy() as proxy:
            url = broker.url_through(proxy) + _OPTIONS[name]
            faults = _FORGETFUL.get(name, BROKER_FAULTS)
            patience = 2.0 if name in ("kafka", "ministack", "fauxqs") else 1.0
            yield Target(name=name, url=url, broker=broker, proxy=proxy, broker_faults=faults, patience=patience)


def run_one(name: str, *, seed: int, seconds: float, workers: int, rate: float, keep: bool = False) -> Outcome:
    """Make one run; its folder stays when something was wrong, or when *keep* is set."""
    folder = Path(tempfile.mkdtemp(prefix=f"msgbus-chaos-{name}-"))
    logging.basicConfig(filename=folder / "run.log", force=True)
    with target(name, folder) as aim:
        outcome = asyncio.run(run_chaos(aim, folder, seed=seed, seconds=seconds, workers=workers, rate=rate))
    if not keep and not outcome.findings.violations:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the brokers asked for and print the table; return 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__)
    parser.add_argument("names", nargs="?", default=",".join(DEFAULT), help="comma-separated; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long things break")
    parser.add_argument("--seed", type=int, default=None, help="replays a schedule; default: a new one")
    parser.add_argument("--workers", type=int, default=3, help="processes that consume")
    parser.add_argument("--rate", type=float, default=60.0, help="messages published per second")
    parser.add_argument("--keep", action="store_true", help="keep journals and logs of runs that were clean too")
    parser.add_argument("--report", type=Path, default=None, help="a page whose table keeps each broker's last run")
    options = parser.parse_args(arguments)
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    outcomes: list[Outcome] = []
    for name in filter(None, options.names.split(",")):
        print(f"{name}: seed {seed}, {options.seconds:g} s", file=sys.stderr, flush=True)
        try:
            outcome = run_one(
                name, seed=seed, seconds=options.seconds, workers=options.workers, rate=options.rate, keep=options.keep
            )
        except BrokerError as exc:
            print(exc, file=sys.stderr)
            return 2
        outcomes.append(outcome)
        if options.report is not None:
            report.keep(options.report, "chaos", render([outcome]))
        if outcome.findings.violations:
            print(f"{outcome.findings.describe()}\njournals and logs: {outcome.folder}", file=sys.stderr, flush=True)
    print(render(outcomes))
    return 1 if any(outcome.findings.violations for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
