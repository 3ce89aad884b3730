"""The worker processes: started, watched and stopped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Self

from msgbus import MsgbusError

PATIENCE = 15.0
"""Seconds a worker gets to finish what it runs before it is killed."""


class Workers:
    """``async with Workers(2, folder) as workers:`` runs two processes of ``examples.shop.app``."""

    def __init__(self, count: int, folder: Path) -> None:
        self._logs = [folder / f"worker-{number}.log" for number in range(1, count + 1)]
        self._processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        for log in self._logs:
            with log.open("wb") as file:
                command = [sys.executable, "-m", "examples.shop.app"]
                self._processes.append(subprocess.Popen(command, stdout=file, stderr=file))  # noqa: ASYNC220, S603
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        await asyncio.to_thread(self._wait)

    def check(self) -> None:
        """Raise if a worker has ended."""
        for process, log in zip(self._processes, self._logs, strict=True):
            if (code := process.poll()) is not None:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise MsgbusError(f"a worker ended with exit code {code}: {' '.join(last)}")

    def _wait(self) -> None:
        for process in self._processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
