"""What all tests share: real brokers on demand, and an environment without the developer's own settings."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from scripts.brokers.fixtures import brokers

__all__ = ["brokers"]

# How long an example takes is the machine's business: on a busy one, Hypothesis's own limit fails what is right.
# And the same examples every time, so that nobody's change fails by somebody else's luck; `make fuzz` looks for more.
settings.register_profile("msgbus", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("msgbus")


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MSGBUS_URL in the developer's shell must not lead tests to a real broker."""
    for name in list(os.environ):
        if name.startswith("MSGBUS_") and not name.startswith("MSGBUS_TEST_"):
            monkeypatch.delenv(name)
