"""A consumer of the workload in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgbus import Bus
from msgbus._run import run
from msgbus.errors import BrokerUnavailable
from msgbus.testing.chaos._workload import Effects, Setup, register
from msgbus.testing.history import Recorder

__all__ = ["SETUP", "TRY_AGAIN", "WHO", "main", "recording_bus"]

SETUP = "MSGBUS_TEST_CHAOS_SETUP"
WHO = "MSGBUS_TEST_CHAOS_WHO"
TRY_AGAIN = 75
"""The exit status that asks a supervisor to start the worker again (EX_TEMPFAIL)."""


def recording_bus(
    setup: Setup, recorder: Recorder, effects: Effects, on_ready: Callable[[], None] = lambda: None
) -> Bus:
    """Return a bus with the workload's handlers that writes down what it does; *on_ready* tells that it consumes."""

    class RecordingBus(Bus):
        async def start(self, **options: Any) -> None:
            recorder.watch(self)
            await super().start(**options)
            on_ready()

    bus = setup.bus(RecordingBus, consume_middleware=[recorder.middleware])
    register(bus, setup, recorder, effects)
    return bus


def _say_ready() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _say_tasks)
    print("ready", flush=True)  # noqa: T201 - this is how the run knows


def _end_with(parent: int) -> None:
    """End when the run does, however it ends: nobody else would stop a worker that it left behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _say_tasks() -> None:
    """Print where every task is: what a worker that does not end is waiting for."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stdout)
    sys.stdout.flush()


def main() -> None:
    """Consume until SIGTERM; end with `TRY_AGAIN` when there is no broker to begin with."""
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    setup = Setup.from_json(os.environ[SETUP])
    recorder = setup.recorder(os.environ[WHO])
    effects = Effects(Path(setup.folder))
    try:
        run(recording_bus(setup, recorder, effects, _say_ready))
    except BrokerUnavailable as exc:
        print(f"the broker is away: {exc}", flush=True)  # noqa: T201
        time.sleep(0.5)
        sys.exit(TRY_AGAIN)
