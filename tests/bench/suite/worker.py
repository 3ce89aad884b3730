"""One contender's process: its imports, its heap and its event loop are nobody else's."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import multiprocessing
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

from tests.bench.suite.cases import find
from tests.bench.suite.contender import Contender
from tests.bench.suite.load import Load, Lost, Measured

__all__ = ["About", "Missing", "Refused", "Task", "Worker", "contender_class"]

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class About:
    """What a contender says of itself."""

    name: str
    kind: str
    guarantee: str
    settings: str
    can: frozenset[str]
    buffer: int
    full: bool
    versions: dict[str, str]


@dataclass(frozen=True)
class Missing:
    """Why a contender takes no part."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """Why there is no figure."""

    reason: str


@dataclass(frozen=True)
class Task:
    """One run of a case, or of the work before it."""

    case: str
    load: Load
    before: bool = False


def contender_class(spec: str) -> type[Contender]:
    """Return the class that ``package.module:Class`` names."""
    module, _, name = spec.partition(":")
    found: type[Contender] = getattr(importlib.import_module(module), name)
    return found


class Worker:
    """A process that runs one contender's tasks, one by one.

    Args:
        spec: ``package.module:Class`` of the contender.
        url: The broker.
        fast_loop: Whether it runs on uvloop.

    Attributes:
        about: What it says of itself, or why it cannot take part.
    """

    def __init__(self, spec: str, url: str, *, fast_loop: bool) -> None:
        self._connection, there = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(there, spec, url, fast_loop), daemon=False)
        self._process.start()
        there.close()
        self.about: About | Missing = self._answer(120)

    def run(self, task: Task, patience: float) -> Measured | Refused:
        """Run one task; what takes longer than *patience* seconds is ended together with the process."""
        self._connection.send(task)
        found: Measured | Refused = self._answer(patience)
        return found

    @property
    def alive(self) -> bool:
        """Whether it can take another task."""
        return self._process.is_alive()

    def close(self) -> None:
        """End the process."""
        if self.alive:
            try:
                self._connection.send(None)
            except OSError:
                pass  # it has ended between the question and the word
            self._process.join(10)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _answer(self, patience: float) -> Any:
        try:
            if self._connection.poll(patience):
                return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(10)
            return Refused(f"its process ended with {self._process.exitcode}")
        self._process.kill()
        self._process.join()
        return Refused(f"not done after {patience:.0f} s")


def _serve(connection: Connection, spec: str, url: str, fast_loop: bool) -> None:
    # What libraries warn of (new topics without leaders, their own ways of use) would hide the figures.
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    try:
        make = contender_class(spec)
    except ModuleNotFoundError as exc:
        connection.send(Missing(str(exc)))
        return
    connection.send(_about(make))
    while (task := connection.recv()) is not None:
        connection.send(_run(make, url, task, fast_loop=fast_loop))


def _about(make: type[Contender]) -> About:
    versions = _versions(make.distributions)
    return About(make.name, make.kind, make.guarantee, make.settings, make.can, make.buffer, make.full, versions)


def _run(make: type[Contender], url: str, task: Task, *, fast_loop: bool) -> Measured | Refused:
    (case,) = [case for case in find("") if case.name == task.case]
    work = case.before if task.before else case.run
    assert work is not None

    async def main() -> Measured:
        async with make(url) as contender:
            return await work(contender, task.load)

    gc.collect()
    gc.freeze()  # as servers do after their imports
    try:
        with asyncio.Runner(loop_factory=_loop_factory(fast=fast_loop)) as runner:
            return runner.run(main())
    except Lost as exc:
        return Refused(str(exc))
    except Exception as exc:  # whatever a peer may raise: the other contenders go on
        return Refused(f"{type(exc).__name__}: {exc}"[:300])


def _loop_factory(*, fast: bool) -> Any:
    if not fast:
        return None
    import uvloop

    return uvloop.new_event_loop


def _versions(distributions: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found
