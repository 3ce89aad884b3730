"""What was measured, kept as JSON: one file per broker, to which each run adds the cases that it measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.suite.cases import CASES
from tests.bench.suite.contender import Kind
from tests.bench.suite.load import Measured
from tests.bench.suite.worker import About

__all__ = ["BrokerResults", "CaseResult", "Entry", "Surroundings"]


@dataclass
class Entry:
    """One contender's figures in one case.

    Attributes:
        refused: Why there is no figure; empty where there is one.
    """

    name: str
    kind: str
    guarantee: str
    settings: str
    rounds: int
    values: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    duplicates: int = 0
    more: dict[str, list[float]] = field(default_factory=dict)
    refused: str = ""

    @classmethod
    def of(cls, about: About, rounds: int) -> Entry:
        """Return an empty one."""
        return cls(about.name, about.kind, about.guarantee, about.settings, rounds)

    def add(self, measured: Measured) -> None:
        """Add one round."""
        self.values.append(measured.value)
        self.cpu.append(measured.cpu)
        self.duplicates += measured.duplicates
        for name, value in measured.more.items():
            self.more.setdefault(name, []).append(value)

    @property
    def median(self) -> float | None:
        """The figure, or None if there is none: a contender that lost a message in one round has none."""
        return statistics.median(self.values) if self.values and not self.refused else None

    @property
    def spread(self) -> float:
        """Half the distance between the highest and the lowest round, as a part of the median."""
        median = statistics.median(self.values)
        return (max(self.values) - min(self.values)) / 2 / abs(median) if median else 0.0

    @property
    def is_ours(self) -> bool:
        """Whether this is msgbus."""
        return self.kind == Kind.OURS


@dataclass
class Surroundings:
    """When and where something was measured."""

    date: str
    machine: str
    python: str
    loop: str
    busy: float
    """Load average over the last minute before the run began."""

    @classmethod
    def now(cls, *, fast_loop: bool) -> Surroundings:
        """Return the present ones."""
        model = platform.machine()
        if Path("/proc/cpuinfo").exists():
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
        return cls(
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}",
            f"{platform.python_implementation()} {platform.python_version()}",
            "uvloop" if fast_loop else "asyncio",
            round(os.getloadavg()[0], 1),
        )


@dataclass
class CaseResult:
    """All contenders of one case."""

    case: str
    surroundings: Surroundings
    entries: list[Entry]


@dataclass
class BrokerResults:
    """All cases on one broker."""

    broker: str
    version: str
    versions: dict[str, str]
    cases: dict[str, CaseResult]

    @classmethod
    def load(cls, path: Path, broker: str) -> BrokerResults:
        """Return what the file has of the present cases, nothing if it is not there."""
        if not path.exists():
            return cls(broker, "", {}, {})
        found = json.loads(path.read_text(encoding="utf-8"))
        cases = {
            name: CaseResult(name, Surroundings(**case["surroundings"]), [Entry(**entry) for entry in case["entries"]])
            for name, case in found["cases"].items()
            if name in {case.name for case in CASES}
        }
        return cls(broker, found["version"], found["versions"], cases)

    def save(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _rounded(value: object) -> object:
    """Four significant digits say more than a shared machine can promise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
