"""A broker as a set of real processes: start, stop, restart, kill, pause."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Callable

from msgbus.testing.faults import FaultProxy
from scripts.brokers._net import HOST

__all__ = ["Broker", "BrokerError", "BrokerMissing", "Launch", "run_step", "wait_until"]

_GUARD = Path(__file__).with_name("_guard.py")
_LOG_TAIL = 25  # lines of its log that an error shows


class BrokerError(RuntimeError):
    """A broker could not be started, stopped or controlled. The text says which and shows the tail of its log."""


class BrokerMissing(BrokerError):
    """Something that a broker needs is not installed. The text is one line that says how to get it."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to run a broker's process.

    Args:
        command: The program and its arguments.
        env: Variables added to this process's environment.
        user: The account to run it as, None for the present one.
    """

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None


class Broker(ABC):
    """One broker on 127.0.0.1 with its data in a temporary folder, below ``MSGBUS_TEST_DATA`` if that is set.

    Ports are chosen once, so that the URL stays good over restarts. A context manager: entering starts the broker if
    it does not run, leaving stops it and removes its folder. If this process dies, however it dies, the broker and its
    folder go with it. Not thread-safe.
    """

    name: ClassVar[str]
    url: str  # what msgbus connects with; the same before and after a restart
    port: int  # where clients connect
    start_timeout: ClassVar[float] = 60.0  # seconds; generous: several brokers may start at once on two cores
    stop_timeout: ClassVar[float] = 30.0  # seconds for an orderly shutdown before it is killed
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self.require()
        self.folder = Path(tempfile.mkdtemp(prefix=f"msgbus-{self.name}-", dir=os.environ.get("MSGBUS_TEST_DATA")))
        self.log = self.folder / "broker.log"
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._prepared = False

    @classmethod
    def install(cls) -> None:
        """Install what the broker needs; nothing where it is there already.

        Raises:
            BrokerMissing: It cannot be installed here; one line says what to do.
        """
        if cls._missing():
            cls._install()
        cls.require()

    @classmethod
    def require(cls) -> None:
        """Check that everything needed is installed.

        Raises:
            BrokerMissing: Something is not; one line says how to get it.
        """
        if missing := cls._missing():
            raise BrokerMissing(f"{cls.name}: {missing}")

    @classmethod
    @abstractmethod
    def _missing(cls) -> str | None:
        """Say what is not installed and how to get it, in one line; None if nothing is missing."""

    @classmethod
    @abstractmethod
    def _install(cls) -> None:
        """Install what is missing."""

    @abstractmethod
    def _prepare(self) -> None:
        """Fill the folder before the first start: configuration, formatted storage."""

    @abstractmethod
    def _launch(self) -> Launch:
        """Say how to run the process."""

    @abstractmethod
    def _ready(self) -> bool:
        """Ask the broker whether it serves clients."""

    @property
    def controllable(self) -> bool:
        """Whether the processes are ours to stop, kill and pause."""
        return True

    @property
    def running(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def pid(self) -> int:
        """The broker's process id, which is its process group's id too.

        Raises:
            BrokerError: It is not running.
        """
        if not self.running:
            raise BrokerError(f"{self.name} is not running, so it has no process to signal")
        return self._pid

    def start(self) -> None:
        """Start the broker on its port and data, and return once it serves clients; nothing if it runs already.

        Raises:
            BrokerError: It ended or was not ready within ``start_timeout``; the text shows the tail of its log.
        """
        if self.running:
            return
        try:
            if not self._prepared:
                self._prepare()
                self._prepared = True
            self._spawn()
            wait_until(self._ready_or_dead, self.start_timeout, f"{self.name} to serve clients")
        except BrokerError as exc:
            self.kill()
            raise BrokerError(f"{self.name} did not start: {exc}\n{self._tail()}") from exc

    def stop(self) -> None:
        """Shut the broker down in an orderly way and keep its data; nothing if it does not run."""
        if not self.running:
            return
        self.resume()
        os.kill(self._pid, self.stop_signal)
        try:
            self._reap(self.stop_timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        """Stop and start on the same data and port."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL all its processes and keep its data; nothing if it does not run."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself a moment ago: what was wanted
                os.killpg(self._pid, signal.SIGKILL)
        self._reap(self.stop_timeout)

    def pause(self) -> None:
        """SIGSTOP all its processes: connections stay open and nothing answers."""
        os.killpg(self.pid, signal.SIGSTOP)
        wait_until(lambda: _stopped(self._pid), self.stop_timeout, f"{self.name} to be stopped", every=0.001)

    def resume(self) -> None:
        """SIGCONT all its processes."""
        os.killpg(self.pid, signal.SIGCONT)

    def proxy(self) -> FaultProxy:
        """Return a new fault proxy in front of the broker; clients reach it by ``url_through``."""
        return FaultProxy(HOST, self.port)

    def url_through(self, proxy: FaultProxy) -> str:
        """Return the URL that msgbus connects through *proxy* with."""
        return self.url.replace(f":{self.port}", f":{proxy.port}")

    def close(self) -> None:
        """Kill the broker and remove its folder. May be called again."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {'running' if self.running else 'stopped'} in {self.folder}>"

    def _spawn(self) -> None:
        launch = self._launch()
        spec = {
            "command": launch.command,
            "env": {**os.environ, **launch.env},
            "folder": str(self.folder),
            "log": str(self.log),
            "user": launch.user,
        }
        self._guard = subprocess.Popen(
            [sys.executable, "-IS", str(_GUARD), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal is ours to act on
        )
        assert self._guard.stdout is not None
        answer = self._guard.stdout.readline().decode().strip()
        if not answer.isdigit():
            self._reap(self.stop_timeout)
            raise BrokerError(answer or "its guard process ended before it could start it")
        self._pid = int(answer)

    def _ready_or_dead(self) -> bool:
        if not self.running:
            assert self._guard is not None
            raise BrokerError(f"its process ended with status {self._guard.returncode}")
        return self._ready()

    def _reap(self, timeout: float) -> None:
        if self._guard is not None:
            self._guard.wait(timeout)
            assert self._guard.stdin is not None
            assert self._guard.stdout is not None
            self._guard.stdin.close()
            self._guard.stdout.close()

    def _tail(self) -> str:
        if not self.log.exists():
            return "(it wrote no log)"
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        return "\n".join(["the end of its log:", *(f"  {line}" for line in lines)])


def _stopped(group: int) -> bool:
    """Tell whether every thread of a process group has come to its stop: the signal only asks for it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if os.getpgid(int(process.name)) == group:
                states = {_state(thread / "stat") for thread in (process / "task").iterdir()}
                if not states <= {"T", "Z", "X"}:  # stopped, ended and not reaped, ending
                    return False
    return True


def _state(stat: Path) -> str:
    return stat.read_text().rpartition(")")[2].split()[0]


def wait_until(condition: Callable[[], bool], timeout: float, what: str, *, every: float = 0.05) -> None:
    """Ask *condition* every *every* seconds until it holds.

    Raises:
        BrokerError: It did not within *timeout* seconds; the text names *what* was waited for.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerError(f"waited {timeout:g} s for {what}")
        time.sleep(every)


def run_step(
    command: list[str],
    *,
    env: dict[str, str] | None = None,
    user: str | None = None,
    cwd: Path | None = None,
    timeout: float = 600.0,
) -> str:
    """Run a helper program to its end and return what it printed.

    Raises:
        BrokerMissing: The program is not installed.
        BrokerError: It failed or took longer than *timeout* seconds; the text shows the end of its output.
    """
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as exc:
        raise BrokerMissing(f"{command[0]} not found") from exc
    except subprocess.TimeoutExpired as exc:
        raise BrokerError(f"`{' '.join(command)}` took longer than {timeout:g} s") from exc
    if done.returncode != 0:
        tail = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-_LOG_TAIL:])
        raise BrokerError(f"`{' '.join(command)}` ended with status {done.returncode}:\n{tail}")
    return done.stdout
