"""What must happen on time while handlers run: leases renewed, overlong handlers interrupted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Protocol

from msgbus._time import Clock
from msgbus.adapter import Received, Subscription
from msgbus.errors import BrokerUnavailable, LeaseLost

__all__ = ["Interruption", "Running", "renew_leases", "watch_timeouts"]

_log = logging.getLogger("msgbus")


class Interruption(StrEnum):
    """Why the receiver cancels a handler."""

    TIMEOUT = "timeout"
    LEASE_LOST = "lease lost"
    SHUTDOWN = "shutdown"


class Running(Protocol):
    """One of the receiver's workers, as far as the watchdog needs to know it."""

    since: float | None
    """When its handler started (monotonic), None while it has none."""

    def interrupt(self, reason: Interruption) -> None:
        """Cancel its handler."""
        ...


async def renew_leases(
    subscription: Subscription,
    lease: float,
    clock: Clock,
    held: Callable[[], list[Received]],
    lost: Callable[[Received], None],
) -> None:
    """Renew the leases of all messages held, running or waiting, three times per lease; runs until cancelled.

    Args:
        subscription: Where the messages came from.
        lease: The lease in seconds.
        clock: Measures it.
        held: Returns the unsettled messages.
        lost: Called for each message that is somebody else's by now.
    """
    while True:
        await clock.sleep(lease / 3)
        messages = held()
        if not messages:
            continue
        try:
            errors = await subscription.extend(messages, lease)
        except BrokerUnavailable as exc:
            _log.warning("%d leases could not be renewed, trying again: %s", len(messages), exc)
            continue
        for received, error in zip(messages, errors, strict=True):
            if isinstance(error, LeaseLost):
                lost(received)


async def watch_timeouts(workers: Iterable[Running], timeout: float, clock: Clock) -> None:
    """Interrupt handlers that run longer than *timeout* seconds; runs until cancelled.

    One timer for all: every handler has the same timeout, so the one that started first is due first.
    """
    while True:
        now = clock.monotonic()
        wait = timeout
        for worker in workers:
            if worker.since is None:
                continue
            left = worker.since + timeout - now
            if left <= 0:
                worker.interrupt(Interruption.TIMEOUT)
            else:
                wait = min(wait, left)
        await clock.sleep(wait)
