"""A consumer of the workload in a process of its own: ``python -m msgbus.testing.chaos.worker``, started by a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgbus import Bus
from msgbus._run import run
from msgbus.errors import BrokerUnavailable
from msgbus.testing.chaos._workload import Effects, Setup, register
from msgbus.testing.history import Recorder

__all__ = ["SETUP", "WHO", "main", "recording_bus"]

SETUP = "MSGBUS_TEST_CHAOS_SETUP"
WHO = "MSGBUS_TEST_CHAOS_WHO"


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
    print("ready", flush=True)  # noqa: T201 - this is how the run knows


def main() -> None:
    """Consume until SIGTERM; while the broker is away, try again, as a supervisor would have it."""
    setup = Setup.from_json(os.environ[SETUP])
    recorder = setup.recorder(os.environ[WHO])
    effects = Effects(Path(setup.folder))
    while True:
        try:
            run(recording_bus(setup, recorder, effects, _say_ready))
        except BrokerUnavailable as exc:
            print(f"waiting for the broker: {exc}", flush=True)  # noqa: T201
            time.sleep(0.5)
        else:
            return


if __name__ == "__main__":
    main()
