"""Control a worker process from a test: wait for what it prints, then kill, pause or stop it.

    with WorkerProcess([sys.executable, "worker.py"], env={"MSGBUS_URL": url}) as worker:
        worker.wait_for_line("ready")
        worker.kill()

Waiting blocks the calling thread: on an event loop use ``await asyncio.to_thread(worker.wait_for_line, "ready")``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["WorkerProcess"]

_SHOWN = 20  # lines of output in an error


class WorkerProcess:
    """A process with its children in a process group of its own; leaving the context kills what is left of it.

    Args:
        command: The program and its arguments.
        env: Variables added to this process's environment.
        cwd: The folder to run it in.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self._command = list(command)
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(  # noqa: S603 - the test's own command
            self._command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"output-of-{self.pid}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id, which is its process group's id too."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the signal's number if one killed it; None while it runs."""
        return self._process.poll()

    @property
    def lines(self) -> list[str]:
        """Everything that it has printed so far, errors included, line by line."""
        with self._changed:
            return list(self._lines)

    def wait_for_line(self, pattern: str, timeout: float = 30.0, *, after: int = 0) -> str:
        """Return the first line that the regular expression *pattern* is found in, waiting for it to be printed.

        Args:
            pattern: Searched for in each line.
            timeout: Seconds to wait.
            after: Skip this many lines from the start, say the ``len(worker.lines)`` of a moment ago.

        Raises:
            TimeoutError: No such line in time, or the process ended without one; the text shows its last lines.
        """
        search = re.compile(pattern).search
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for line in self._lines[after:]:
                    if search(line):
                        return line
                after = max(after, len(self._lines))
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    raise TimeoutError(self._complaint(f"no line with {pattern!r} within {timeout:g} s"))
                self._changed.wait(remaining)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end and return its exit status; its output is complete then.

        Raises:
            TimeoutError: It still runs after *timeout* seconds; the text shows its last lines.
        """
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            with self._changed:
                raise TimeoutError(self._complaint(f"still running after {timeout:g} s")) from None
        self._reader.join(timeout)
        return status

    def memory(self) -> int:
        """Return the bytes of memory it holds (its resident set size)."""
        listed = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True, check=True)  # noqa: S603, S607
        return int(listed.stdout) * 1024

    def kill(self) -> None:
        """SIGKILL the process and its children, and wait for its end."""
        self._signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """SIGTERM the process alone: how it ends is up to it."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP the process and its children, and wait until the process has stopped or ended."""
        self._signal(signal.SIGSTOP)
        if self.returncode is None and hasattr(os, "waitid"):  # macOS has it from Python 3.13 on; there it may lag
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT the process and its children."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill what is left of it. May be called again."""
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"ended with {self.returncode}"
        return f"<WorkerProcess {self.pid} {state}: {' '.join(self._command)}>"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # neither it nor a child is left
            os.killpg(self.pid, number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _complaint(self, problem: str) -> str:
        said = "\n".join(f"  {line}" for line in self._lines[-_SHOWN:]) or "  (nothing)"
        return f"{self!r}: {problem}; it printed last:\n{said}"
