"""What all tests share: real brokers on demand, and an environment without the developer's own settings."""

from __future__ import annotations

import os

import pytest

from scripts.brokers.fixtures import brokers

__all__ = ["brokers"]


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MSGBUS_URL in the developer's shell must not lead tests to a real broker."""
    for name in list(os.environ):
        if name.startswith("MSGBUS_") and not name.startswith("MSGBUS_TEST_"):
            monkeypatch.delenv(name)
