"""Takes the contenders in turn, round by round, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tests.bench.suite.cases import Case
from tests.bench.suite.contender import Kind
from tests.bench.suite.load import Load, Measured
from tests.bench.suite.results import Entry
from tests.bench.suite.worker import About, Missing, Refused, Task, Worker

__all__ = ["Runner", "Settings"]


_LEAST = 0.1
"""Seconds that the measured part of a run takes at least, however long it took to connect: else the figure of whoever
is slow to connect and quick afterwards would come from few messages, and say how quick the first ones are."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: Measured rounds.
        seconds: What a run of a headline case should take with all that belongs to it: connecting, filling, checking.
        fast_loop: Whether everybody's event loop is uvloop.
        patience: Seconds after which a run is given up.
    """

    rounds: int = 5
    seconds: float = 1.0
    fast_loop: bool = True
    patience: float = 90.0


class Runner:
    """Measures cases on one broker. Close it when done.

    Args:
        url: The broker.
        specs: The contenders.
        settings: How much.
        say: Takes a line about what happens.
    """

    def __init__(self, url: str, specs: Sequence[str], settings: Settings, say: Callable[[str], None]) -> None:
        self._url = url
        self._settings = settings
        self._say = say
        self._workers: dict[str, Worker] = {}
        self.about: dict[str, About] = {}
        self.missing: dict[str, str] = {}
        for spec in specs:
            self._enlist(spec)

    def _enlist(self, spec: str) -> None:
        worker = self._worker(spec)
        if isinstance(worker.about, About):
            self.about[spec] = worker.about
        else:
            self.missing[spec] = worker.about.reason if isinstance(worker.about, Missing) else str(worker.about)
            self._say(f"without {spec.rpartition('.')[2]}: {self.missing[spec]}")
            worker.close()
            del self._workers[spec]

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            with suppress(OSError):
                worker.close()

    def takes_part(self, case: Case) -> list[str]:
        """Return who can do the case and is wanted there."""
        return [spec for spec, about in self.about.items() if case.needs <= about.can and _wanted(case, about)]

    def runs(self, case: Case) -> int:
        """Return how many runs `measure` makes of the case, the ones that warm up with them."""
        return len(self.takes_part(case)) * (self._rounds(case) + (1 if case.fixed else 2))

    def _rounds(self, case: Case) -> int:
        return min(case.rounds or self._settings.rounds, self._settings.rounds)

    def measure(self, case: Case, seconds: float = 0.0) -> list[Entry]:
        """Return what each contender that can do it took, *seconds* per run instead of what the settings say."""
        entries = {spec: Entry.of(self.about[spec], self._rounds(case)) for spec in self.takes_part(case)}
        loads: dict[str, Load] = {}
        rates: list[float] = []
        for spec, entry in entries.items():
            load, found = self._warm(case, spec, seconds or self._settings.seconds * case.weight)
            loads[spec] = load
            if isinstance(found, Refused):
                self._refuse(entry, found)
            elif found is not None:
                rates.append(found.value)
        if case.paced and rates:
            loads = {spec: _paced(case, load, min(rates) / 2, seconds) for spec, load in loads.items()}
        for _ in range(self._rounds(case)):
            for spec, entry in entries.items():
                if entry.refused:
                    continue
                found = self._run(case, spec, replace(loads[spec], queue=_queue()))
                if isinstance(found, Refused):
                    self._refuse(entry, found)
                else:
                    entry.add(found)
        return list(entries.values())

    def _refuse(self, entry: Entry, refused: Refused) -> None:
        entry.refused = refused.reason
        self._say(f"  {entry.name}: no figure: {refused.reason}")

    def _warm(self, case: Case, spec: str, seconds: float) -> tuple[Load, Measured | Refused | None]:
        """Run the case once or twice; return how much of it takes the time."""
        load = self._load(case, min(case.warm, case.fixed) if case.fixed else case.warm)
        if not load.count:
            return self._load(case, case.fixed), None
        found, took = self._timed(case, spec, load)
        if case.fixed or isinstance(found, Refused):
            return self._load(case, case.fixed or load.count), found
        if took > 2 * seconds and _measured(case, load, found) >= _LEAST:
            return self._load(case, max(int(load.count * seconds / took), case.fewest)), found
        # What connecting takes does not grow with the messages: a second run tells the one from the other.
        more = self._load(case, min(int(load.count * min(max(seconds / 2 / took, 3), 10)), case.most))
        found, longer = self._timed(case, spec, more)
        each = max(longer - took, longer * 0.1) / max(more.count - load.count, 1)
        start = max(longer - more.count * each, 0.0)
        count = int(max(seconds - start, seconds / 2) / each)
        if isinstance(found, Measured) and _is_rate(case):
            count = max(count, int(found.value * _LEAST))
        if case.buffered:
            count = max(count, min(self.about[spec].buffer * 5, count * 3))
        return self._load(case, min(max(count, case.fewest), more.count * 10, case.most)), found

    def _timed(self, case: Case, spec: str, load: Load) -> tuple[Measured | Refused, float]:
        began = time.perf_counter()
        return self._run(case, spec, load), max(time.perf_counter() - began, 1e-3)

    def _load(self, case: Case, count: int) -> Load:
        return Load(count, case.size, _queue(), part=case.part, patience=self._settings.patience / 3)

    def _run(self, case: Case, spec: str, load: Load) -> Measured | Refused:
        patience = self._settings.patience
        if case.before is None:
            return self._worker(spec).run(Task(case.name, load), patience)
        prepared = self._worker(spec).run(Task(case.name, load, before=True), patience)
        if isinstance(prepared, Refused):
            return prepared
        fresh = Worker(spec, self._url, fast_loop=self._settings.fast_loop)
        try:
            return fresh.run(Task(case.name, load), patience)
        finally:
            fresh.close()

    def _worker(self, spec: str) -> Worker:
        """Return the contender's process, a new one if it has been ended."""
        worker = self._workers.get(spec)
        if worker is None or not worker.alive:
            if worker is not None:
                worker.close()
            worker = self._workers[spec] = Worker(spec, self._url, fast_loop=self._settings.fast_loop)
        return worker


def _is_rate(case: Case) -> bool:
    return case.unit.endswith("/s")


def _measured(case: Case, load: Load, found: Measured) -> float:
    """Return about how many seconds of a run its figure is from; endless where the figure does not tell."""
    return load.count / found.value if _is_rate(case) and found.value else math.inf


def _wanted(case: Case, about: About) -> bool:
    if case.alone:
        return about.kind == Kind.OURS
    return about.full or case.headline


def _paced(case: Case, load: Load, rate: float, seconds: float) -> Load:
    """Return as much as comes at that rate in the time, for everybody."""
    return replace(load, count=max(int(rate * (seconds or 1.0)), case.fewest), rate=rate)


def _queue() -> str:
    return f"bench-{secrets.token_hex(4)}"
