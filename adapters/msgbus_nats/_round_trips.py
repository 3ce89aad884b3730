"""Telling when the server has read what was written, and that it has written what is read.

It answers a PING after everything that was written before, and its answer comes before everything that it writes later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgbus.errors import BrokerError
from msgbus_nats._client import NatsClient

__all__ = ["RoundTrips"]


class RoundTrips:
    """Shares PINGs among all who want to know: one is under way at a time, the next is for who asks meanwhile.

    Args:
        monotonic: The clock.

    Attributes:
        proven: When the last PING that was answered was sent. What is read from now on, the server wrote later than
            that, however long it was on its way.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.proven = monotonic()
        self._monotonic = monotonic
        self._waiters: list[asyncio.Future[None]] = []
        self._travelling: list[asyncio.Future[None]] = []
        self._departure: asyncio.TimerHandle | None = None

    def ask(self, client: NatsClient, patience: float) -> asyncio.Future[None]:
        """Return a future that is done once the server has read all that *client* has written so far.

        Who cancels the future spares the round trip, if nobody else wants it.

        Args:
            client: The connection's.
            patience: Seconds in which to wait for a round trip of somebody else's.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        if self._travelling:
            pass  # the next one begins when this one is over
        elif not patience:
            self._depart(client)
        elif self._departure is None:
            self._departure = loop.call_later(patience, self._depart, client)
        return waiter

    def prove(self, client: NatsClient, age: float) -> None:
        """See to it that `proven` does not get older than *age* seconds, if the server answers."""
        if not self._travelling and self._monotonic() - self.proven > age:
            self.ask(client, 0.0).add_done_callback(asyncio.Future.exception)  # nobody waits for this one

    def fail(self, error: BrokerError) -> None:
        """Tell all who wait that the connection is gone."""
        self._cancel_departure()
        waiters, self._waiters, self._travelling = self._travelling + self._waiters, [], []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def _depart(self, client: NatsClient) -> None:
        self._cancel_departure()
        travelling, self._waiters = [w for w in self._waiters if not w.done()], []
        if travelling:
            self._travelling = travelling
            departure = self._monotonic()
            client.ping().add_done_callback(lambda _: self._returned(client, travelling, departure))

    def _returned(self, client: NatsClient, travelled: list[asyncio.Future[None]], departure: float) -> None:
        if self._travelling is not travelled:
            return  # the connection was lost meanwhile, and everybody was told
        self._travelling = []
        self.proven = departure
        if self._waiters:
            self._depart(client)
        for waiter in travelled:
            if not waiter.done():
                waiter.set_result(None)

    def _cancel_departure(self) -> None:
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None
