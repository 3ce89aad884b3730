"""Several worker processes: started, watched, started again, and told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgbus.cli._errors import FAILED, MISUSED
from msgbus.cli._logs import log
from msgbus.cli._watch import Watch

__all__ = ["Supervisor"]

_SETTLED = 10.0
"""Seconds after which a worker that ends was running; one that ends earlier did not get that far."""
_MAX_CRASHES = 5
"""How often in a row a worker may end before that, until it is given up."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
_SIGNALS = (
    "stopping; once more does not wait for handlers",
    "not waiting for handlers; once more kills",
    "killing",
)
_LOOK = 0.3
"""Seconds between two looks at the files."""


class Supervisor:
    """Keeps workers running until a signal says stop.

    The first SIGTERM or SIGINT is passed on, and so is the second, which does not wait for handlers any more; the third
    kills. A worker whose supervisor is gone ends by itself: it holds one end of a pipe.

    Args:
        command: Starts one worker; the worker's end of the pipe and its number are added.
        workers: How many.
        watch: Start all again when a Python file in this directory changes.
    """

    def __init__(self, command: Sequence[str], workers: int, *, watch: Path | None = None) -> None:
        self._command = list(command)
        self._workers = workers
        self._watch = None if watch is None else Watch(watch)
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._signals = 0
        self._edition = 0
        self._changed = asyncio.Event()
        self._given_up = 0
        self._pipe = -1

    async def run(self) -> int:
        """Run until a signal says stop or a worker is given up; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        self._pipe, ours = os.pipe()
        watching = loop.create_task(self._watch_files())
        try:
            codes = await asyncio.gather(*(self._keep(number) for number in range(1, self._workers + 1)))
        finally:
            watching.cancel()
            os.close(ours)
            os.close(self._pipe)
        return self._given_up or max(codes)

    def _on_signal(self, number: signal.Signals) -> None:
        self._signals += 1
        self._wake()
        what = _SIGNALS[min(self._signals, len(_SIGNALS)) - 1]
        log.info("%s: %s (%d workers)", number.name, what, len(self._running))
        # SIGTERM for both: a worker that is still importing dies of it, where SIGINT would print a traceback.
        self._send(signal.SIGTERM if self._signals < 3 else signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):  # it has ended, which `_keep` is about to be told
                process.send_signal(number)

    async def _keep(self, number: int) -> int:
        """Keep one worker running; return its exit code once it is not to run any more."""
        crashes = 0
        while True:
            edition, started = self._edition, time.monotonic()
            code = await self._run_once(number)
            if self._ending():
                return FAILED if code not in (0, -signal.SIGTERM) else 0
            if edition != self._edition:
                crashes = 0
                continue
            if self._watch is not None and code != 0:
                log.error("worker %d %s; waiting for a change", number, _how(code))
                await self._pause(None)
                continue
            crashes = crashes + 1 if time.monotonic() - started < _SETTLED else 0
            if code == MISUSED or crashes == _MAX_CRASHES:
                return self._give_up(number, code)
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** max(0, crashes - 1))
            log.error("worker %d %s; starting it again in %g s", number, _how(code), pause)
            await self._pause(pause)

    async def _run_once(self, number: int) -> int:
        if self._ending():
            return 0
        process = await asyncio.create_subprocess_exec(
            *self._command,
            "--supervised",
            f"{self._pipe}:{number}",
            pass_fds=(self._pipe,),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # or Ctrl-C would reach it twice: from the terminal, and from us
        )
        self._running[number] = process
        if self._ending():  # while it was being started
            self._send(signal.SIGTERM)
        try:
            return await process.wait()
        finally:
            del self._running[number]

    def _ending(self) -> bool:
        return self._signals > 0 or self._given_up > 0

    def _give_up(self, number: int, code: int) -> int:
        if not self._given_up:
            if code != MISUSED:
                log.error(
                    "worker %d %s for the %dth time in a row at its start: giving up", number, _how(code), _MAX_CRASHES
                )
            self._given_up = code if code == MISUSED else FAILED
            self._wake()
            self._send(signal.SIGTERM)
        return self._given_up

    async def _pause(self, seconds: float | None) -> None:
        """Wait, at most until something changes."""
        changed = self._changed
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            pass  # nothing has changed

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch_files(self) -> None:
        while self._watch is not None:
            await asyncio.sleep(_LOOK)
            if changed := await asyncio.to_thread(self._watch.changed):
                log.info("%s changed: starting again", changed)
                self._edition += 1
                self._wake()
                self._send(signal.SIGTERM)


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
