"""What all tests share: real brokers on demand, and an environment without the developer's own settings."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from scripts.brokers.fixtures import brokers

__all__ = ["brokers"]

# How long an example takes is the machine's business: on a busy one, Hypothesis's own limit fails what is right.
# And the same examples every time, so that nobody's change fails by somebody else's luck; `make fuzz` looks for more.
settings.register_profile("msgbus", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("msgbus")


def pytest_configure() -> None:
    """Let Ctrl-C reach the programs under test, however the suite was started: a shell's ``&`` ignores it for all."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MSGBUS_URL in the developer's shell must not lead tests to a real broker."""
    for name in list(os.environ):
        if name.startswith("MSGBUS_") and not name.startswith("MSGBUS_TEST_"):
            monkeypatch.delenv(name)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collect no garbage while a failure is put into words.

    Python 3.11 before 3.11.8 and 3.12 before 3.12.2 get `ast.parse` wrong when a finalizer calls it too, as asyncio's
    does for a task whose error nobody took (python/cpython#106905), and pytest then gives up the whole run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
