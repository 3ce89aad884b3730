"""What the workers did to the outside world, written down: one JSON-lines file per process."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

Entry = dict[str, Any]


class Ledger:
    """Stands for the bank, the mail server and the warehouse: every line is an effect that cannot be taken back."""

    def __init__(self) -> None:
        self._folder = Path(os.environ.get("MSGBUS_DEMO_FOLDER") or tempfile.gettempdir())
        self._file: TextIO | None = None

    def write(self, what: str, order: str, **more: Any) -> None:
        """Write down that *what* was done for *order*."""
        if self._file is None:
            self._file = (self._folder / f"ledger-{os.getpid()}.jsonl").open("a", buffering=1, encoding="utf-8")
        self._file.write(json.dumps({"what": what, "order": order, "at": time.monotonic(), **more}) + "\n")


class LedgerReader:
    """Follows the files of all workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.entries: list[Entry] = []

    def poll(self) -> list[Entry]:
        """Read what was added since the last call; return all entries so far."""
        self.entries.extend(self._added())
        return self.entries

    def _added(self) -> Iterator[Entry]:
        for path in sorted(self._folder.glob("ledger-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # the rest of this line is still being written
                    self._read[path] = self._read.get(path, 0) + len(line)
                    yield json.loads(line)
