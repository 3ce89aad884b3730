"""Brokers for pytest: register with ``from scripts.brokers.fixtures import brokers`` in a ``conftest.py``.

``brokers("rabbitmq")`` in a test starts RabbitMQ when the first test asks, and hands the same one to all that follow;
whatever a test did to it, the next one finds it running. With pytest-xdist each worker starts its own: give tests of
one broker the mark ``xdist_group(<broker>)`` and run with ``--dist loadgroup`` so that they share a worker.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from scripts.brokers import Broker, BrokerError, BrokerMissing, make

__all__ = ["BrokerPool", "brokers", "require_broker", "unavailable"]


def unavailable(reason: str) -> NoReturn:
    """Skip the test on a laptop; fail it where ``CI`` is set, for there everything has to be installed."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{reason} (a failure, not a skip, because CI is set)", pytrace=False)
    pytest.skip(reason)


def require_broker(name: str) -> Broker:
    """Return a new broker of the test's own, not started yet; entering its context starts it.

    The test is skipped if something is not installed, or fails where ``CI`` is set.
    """
    try:
        return make(name)
    except BrokerMissing as exc:
        unavailable(str(exc))


class BrokerPool:
    """Brokers by name, each started when it is first asked for."""

    def __init__(self) -> None:
        self._brokers: dict[str, Broker] = {}
        self._failures: dict[str, str] = {}
        self._closing = contextlib.ExitStack()

    def __call__(self, name: str) -> Broker:
        """Return the named broker, running; the test is skipped, or fails, as ``require_broker`` has it."""
        if name in self._failures:  # once is enough: each try may take a minute
            pytest.fail(self._failures[name], pytrace=False)
        broker = self._brokers.get(name)
        if broker is None:
            broker = require_broker(name)
            self._closing.callback(broker.close)
            self._brokers[name] = broker
        try:
            if broker.running and broker.controllable:
                broker.resume()
            broker.start()
        except BrokerError as exc:
            self._failures[name] = str(exc)
            raise
        return broker

    def close(self) -> None:
        """Stop all that were started."""
        self._closing.close()


@pytest.fixture(scope="session")
def brokers() -> Iterator[Callable[[str], Broker]]:
    """Return a function from a broker's name to the test session's running one."""
    pool = BrokerPool()
    yield pool
    pool.close()
