"""The workers of a run: processes that can be killed and stopped, or buses inside this process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from msgbus import Bus
from msgbus.testing.chaos._worker import SETUP, TRY_AGAIN, WHO, recording_bus
from msgbus.testing.chaos._workload import Effects, Setup
from msgbus.testing.history import EventKind, Journal, Recorder
from msgbus.testing.processes import WorkerProcess

__all__ = ["Crew", "LocalCrew", "ProcessCrew"]

_START = 120.0
_END = 120.0
"""Seconds a worker gets to end after SIGTERM: its drain, and a broker that may be away."""


class Crew(ABC):
    """A number of workers, kept constant.

    Args:
        setup: The run's.
        size: How many.
        journal: Where faults are written down.
        recorder: Where it complains.
    """

    def __init__(self, setup: Setup, size: int, journal: Journal, recorder: Recorder) -> None:
        self._setup = setup
        self._size = size
        self._journal = journal
        self._recorder = recorder
        self._hired = 0

    @abstractmethod
    async def start(self) -> None:
        """Start all workers; return when they consume."""

    @abstractmethod
    async def harm(self, what: str, seconds: float, choice: float) -> None:
        """Do to one of them what a `Step` says, and see that their number stays the same."""

    @abstractmethod
    async def check(self) -> None:
        """Replace workers that ended unasked, and complain about them."""

    @abstractmethod
    async def stop(self) -> None:
        """Ask all to end, and wait."""

    def _name(self) -> str:
        self._hired += 1
        return f"worker-{self._hired}"

    def _fault(self, who: str, what: str) -> None:
        self._journal.write(EventKind.FAULT, who=who, detail=what)


class ProcessCrew(Crew):
    """Workers that are processes."""

    def __init__(self, setup: Setup, size: int, journal: Journal, recorder: Recorder) -> None:
        super().__init__(setup, size, journal, recorder)
        self._workers: dict[str, WorkerProcess] = {}
        self._leaving: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        while len(self._workers) < self._size:
            self._hire()
        for worker in self._workers.values():
            await asyncio.to_thread(worker.wait_for_line, "^ready", _START)

    async def harm(self, what: str, seconds: float, choice: float) -> None:
        name = sorted(self._workers)[int(choice * len(self._workers))]
        worker = self._workers[name]
        self._fault(name, what)
        if what == "stop":
            await asyncio.to_thread(worker.pause)
            try:
                await asyncio.sleep(seconds)
            finally:
                worker.resume()
                self._fault(name, "resume")
            return
        del self._workers[name]
        if what == "kill":
            await asyncio.to_thread(worker.kill)
            self._say_last(name, worker)
            worker.close()
        else:
            worker.terminate()
            self._leaving.append(asyncio.create_task(self._see_off(name, worker)))
        self._hire()

    async def check(self) -> None:
        for name, worker in list(self._workers.items()):
            if worker.returncode is not None:
                del self._workers[name]
                if worker.returncode != TRY_AGAIN or _was_ready(worker):
                    self._recorder.complain(f"{name} ended by itself with {worker.returncode}: {_last(worker)}")
                self._say_last(name, worker)
                worker.close()
                self._hire()

    async def stop(self) -> None:
        for name, worker in self._workers.items():
            worker.terminate()
            self._leaving.append(asyncio.create_task(self._see_off(name, worker)))
        self._workers.clear()
        await asyncio.gather(*self._leaving)

    async def _see_off(self, name: str, worker: WorkerProcess) -> None:
        """Wait for a worker that was asked to end; it must do so well, unless it had not begun yet."""
        try:
            status = await asyncio.to_thread(worker.wait, _END)
        except TimeoutError:
            os.kill(worker.pid, signal.SIGUSR1)
            await asyncio.sleep(1)
            self._recorder.complain(f"{name} did not end within {_END:g} s of SIGTERM; its log says where it is")
        else:
            if status and _was_ready(worker):
                self._recorder.complain(f"{name} ended with {status} after SIGTERM: {_last(worker)}")
        finally:
            self._say_last(name, worker)
            worker.close()

    def _hire(self) -> None:
        name = self._name()
        self._workers[name] = WorkerProcess(
            [sys.executable, "-m", "msgbus.testing.chaos"],
            env={SETUP: self._setup.to_json(), WHO: name},
        )

    def _say_last(self, name: str, worker: WorkerProcess) -> None:
        """Keep what a worker printed beside the history."""
        (Path(self._setup.folder) / f"{name}.log").write_text("\n".join(worker.lines) + "\n")


class LocalCrew(Crew):
    """Workers that are buses in this process, for brokers that live in it: they can only be asked to end."""

    def __init__(self, setup: Setup, size: int, journal: Journal, recorder: Recorder) -> None:
        super().__init__(setup, size, journal, recorder)
        self._buses: dict[str, tuple[Bus, Effects, Recorder]] = {}

    async def start(self) -> None:
        while len(self._buses) < self._size:
            await self._hire()

    async def harm(self, what: str, seconds: float, choice: float) -> None:
        name = sorted(self._buses)[int(choice * len(self._buses))]
        self._fault(name, what)
        await self._end(name)
        await self._hire()

    async def check(self) -> None:
        return

    async def stop(self) -> None:
        for name in list(self._buses):
            await self._end(name)

    async def _hire(self) -> None:
        name = self._name()
        effects = Effects(Path(self._setup.folder))
        recorder = self._setup.recorder(name)
        bus = recording_bus(self._setup, recorder, effects)
        await bus.__aenter__()
        self._buses[name] = bus, effects, recorder
        await bus.start()

    async def _end(self, name: str) -> None:
        bus, effects, recorder = self._buses.pop(name)
        await bus.__aexit__()
        effects.close()
        recorder.close()


def _was_ready(worker: WorkerProcess) -> bool:
    return "ready" in worker.lines


def _last(worker: WorkerProcess) -> str:
    return " | ".join(worker.lines[-12:])
