"""One connection that keeps itself open: failover between hosts, reconnection with back-off."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amqp import spec

from msgbus.errors import AccessDenied, BrokerUnavailable, ClosedError
from msgbus_rabbitmq._errors import reason, translate
from msgbus_rabbitmq._wire import Login, Wire

__all__ = ["Link", "Target"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, and how.

    Attributes:
        hosts: Tried in turn, the one that worked last first.
        tls: The TLS context, or None for plain TCP.
        login: How to introduce oneself.
        timeout: Seconds for one attempt on all hosts.
    """

    hosts: Sequence[tuple[str, int]]
    tls: ssl.SSLContext | None
    login: Login
    timeout: float


class Link:
    """A connection for one purpose (publishing, or consuming).

    Args:
        target: Where to connect, and how.
        on_change: Called when the connection is lost, back, blocked or unblocked.

    Attributes:
        trouble: Why it is not usable now; empty when it is.
    """

    def __init__(self, target: Target, on_change: Callable[[], None]) -> None:
        self._target = target
        self._on_change = on_change
        self._hosts = list(target.hosts)
        self._wire: Wire | None = None
        self._reason = "not opened"
        self._up = asyncio.Event()
        self._wanted = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def trouble(self) -> str:
        """Why the link is not usable now; empty when it is."""
        if self._wire is None:
            return self._reason
        return f"publishing is blocked by the broker: {self._wire.blocked}" if self._wire.blocked is not None else ""

    @property
    def host(self) -> tuple[str, int]:
        """The host in use, or the next one to try."""
        return self._hosts[0]

    async def open(self) -> None:
        """Connect for the first time, then stay connected.

        Raises:
            BrokerUnavailable: No host answers in time.
            AccessDenied: The broker refuses us.
        """
        self._set(await self._connect())
        self._keeper = asyncio.create_task(self._keep())

    def require(self) -> Wire:
        """Return the connection.

        Raises:
            BrokerUnavailable: There is none now.
            ClosedError: The adapter was closed, or not opened.
        """
        if self._closed:
            raise ClosedError("the adapter is closed")
        if self._wire is None:
            raise BrokerUnavailable(self._reason) if self._keeper else ClosedError("the adapter is not open")
        return self._wire

    async def ready(self) -> Wire:
        """Return the connection; wait for it, while it is being repaired, as long as for a new one.

        Raises:
            BrokerUnavailable: It did not come back in time.
        """
        if self._wire is None and self._keeper and not self._closed:
            self._wanted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._target.timeout):
                    await self.up()
        return self.require()

    async def up(self) -> Wire:
        """Wait for the connection and return it."""
        while self._wire is None:
            if self._closed:
                raise ClosedError("the adapter is closed")
            self._up.clear()
            await self._up.wait()
        return self._wire

    async def count(self, queue: str) -> tuple[int, int]:
        """Return how many messages are ready in *queue*, and how many consumers it has; raises py-amqp's errors."""
        channel = await (await self.ready()).channel()
        try:
            reply = await channel.call(spec.Queue.Declare, "BsbbbbbF", 0, queue, True, False, False, False, False, {})
        finally:
            await channel.aclose()
        return int(reply[1]), int(reply[2])

    async def aclose(self) -> None:
        """Close. Idempotent."""
        self._closed = True
        self._up.set()
        wire, self._wire, self._reason = self._wire, None, "closed"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if wire is not None:
            await wire.aclose()

    def _set(self, wire: Wire) -> None:
        self._wire = wire
        self._up.set()
        self._on_change()

    async def _keep(self) -> None:
        while True:
            wire = await self.up()
            await asyncio.wait([wire.closed])
            self._wire = None
            self._reason = f"the connection to {self._shown()} is lost: {reason(wire.closed.result())}"
            self._on_change()
            pause = _FIRST_PAUSE
            while self._wire is None:
                await self._rest(random.uniform(pause / 2, pause))  # noqa: S311 - spreading load, not secrets
                try:
                    self._set(await self._connect())
                except (BrokerUnavailable, AccessDenied) as exc:
                    self._reason = str(exc)
                    pause = min(pause * 2, _LONGEST_PAUSE)

    async def _rest(self, pause: float) -> None:
        """Wait before the next attempt, but not for long when somebody needs the connection."""
        await asyncio.sleep(min(pause, _FIRST_PAUSE))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(pause - _FIRST_PAUSE, 0)):
                await self._wanted.wait()
        self._wanted.clear()

    def _shown(self) -> str:
        return "{}:{}".format(*self.host)

    async def _connect(self) -> Wire:
        """Connect to the first host that answers, and make it the first to try next time."""
        failure: BaseException = BrokerUnavailable("no host")
        what = ""
        try:
            async with asyncio.timeout(self._target.timeout):
                for _ in range(len(self._hosts)):
                    what = f"cannot connect to {self._shown()}"
                    try:
                        return await self._connect_to(*self.host)
                    except Exception as exc:  # noqa: BLE001 - whatever ails one host, the next may work
                        failure = exc
                    self._hosts.append(self._hosts.pop(0))
        except TimeoutError as exc:
            self._hosts.append(self._hosts.pop(0))
            failure = exc
        raise translate(failure, what)

    async def _connect_to(self, host: str, port: int) -> Wire:
        loop = asyncio.get_running_loop()
        wires: list[Wire] = []

        def make() -> Wire:
            wires.append(Wire(self._target.login, self._on_change))
            return wires[-1]

        try:
            # A share of the whole time for each host, so that one that never answers leaves some for the next.
            async with asyncio.timeout(self._target.timeout / len(self._hosts)):
                await loop.create_connection(make, host, port, ssl=self._target.tls)
                await wires[-1].ready
        except BaseException as exc:
            for wire in wires:
                wire.abort(exc)
                if not wire.ready.cancelled():
                    wire.ready.exception()  # seen, so that asyncio does not report it
            raise
        return wires[-1]
