"""Takes the contenders in turn, round by round, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tests.bench.suite.cases import Case
from tests.bench.suite.load import Load, Measured
from tests.bench.suite.results import Entry
from tests.bench.suite.worker import About, Missing, Refused, Task, Worker

__all__ = ["Runner", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: Measured rounds.
        seconds: What a measured run should take; the round that warms up tells how many messages that is.
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

    def measure(self, case: Case) -> list[Entry]:
        """Return what each contender that can do it took."""
        specs = [spec for spec, about in self.about.items() if case.needs <= about.can]
        entries = {spec: Entry.of(self.about[spec], self._settings.rounds) for spec in specs}
        warm = {spec: self._run(case, spec, self._warm_load(case)) for spec in specs}
        rate = 0.0
        if case.paced:
            rate = min((m.value for m in warm.values() if isinstance(m, Measured)), default=0.0) / 2
        for number in range(self._settings.rounds + 1):
            for spec in specs:
                found = warm[spec] if not number else self._measured(case, spec, warm[spec], rate)
                if isinstance(found, Refused):
                    entries[spec].refused = found.reason
                    self._say(f"  {entries[spec].name}: no figure: {found.reason}")
                elif number:
                    entries[spec].add(found)
            specs = [spec for spec in specs if not entries[spec].refused]
        return list(entries.values())

    def _measured(self, case: Case, spec: str, warm: Measured | Refused, rate: float) -> Measured | Refused:
        assert isinstance(warm, Measured)
        count = case.fixed or min(max(int((rate or warm.value) * self._settings.seconds), case.warm), case.most)
        return self._run(case, spec, replace(self._load(case, count), rate=rate))

    def _warm_load(self, case: Case) -> Load:
        return self._load(case, min(case.warm, case.fixed) if case.fixed else case.warm)

    def _load(self, case: Case, count: int) -> Load:
        queue = f"bench-{secrets.token_hex(4)}"
        return Load(count, case.size, queue, part=case.part, patience=self._settings.patience / 3)

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
