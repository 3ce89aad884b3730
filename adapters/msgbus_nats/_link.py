"""The connection: one nats-py client after the other, for ever.

nats-py can reconnect by itself, but then it replays whatever its buffer held when the connection broke, gives up for
good when the server reports an error, waits for a dead peer's socket to close, and gives no sign between the old
connection and the new. Here a client lives as long as its connection: when that is gone everything that waited on
it is told, and a new client is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.nuid import NUID

from msgbus.adapter import AdapterConfig, BusURL, Health
from msgbus.errors import BrokerError, BrokerUnavailable, ClosedError, ConfigError
from msgbus_nats._client import Dialer, Handler, NatsClient, frame
from msgbus_nats._errors import ApiError, translate
from msgbus_nats._headers import parse_headers
from msgbus_nats._options import NatsOptions
from msgbus_nats._round_trips import RoundTrips

__all__ = ["Link", "Member"]

_log = logging.getLogger("msgbus.nats")
T = TypeVar("T")

_TICK = 0.25
"""Seconds between two ticks."""
_PROBE = 3.0
"""Seconds between two round trips that prove the connection alive, and how long each may take."""
_BACKOFF = (0.05, 2.0)
"""Seconds before the second attempt to connect, and the most between two attempts."""


class Member(Protocol):
    """What lives on the connection."""

    async def attach(self, client: Client) -> None:
        """Set up on a new connection."""
        ...

    def detach(self) -> None:
        """The connection is gone: whatever waits for it will never come."""
        ...

    def tick(self) -> None:
        """Look after what is due."""
        ...


class Link:
    """Keeps a connection to one of the URL's servers.

    Args:
        url: The broker's URL.
        options: Its options.
        config: The bus's.
        on_health: Called with the connection's health when it changes.
    """

    def __init__(
        self, url: BusURL, options: NatsOptions, config: AdapterConfig, on_health: Callable[[Health], None]
    ) -> None:
        self._url = url
        self._options = options
        self._config = config
        self._on_health = on_health
        self._dialer = Dialer(url, options, config)
        self._discovered: list[str] = []
        self.client: NatsClient | None = None
        self.inbox = f"{options.inbox}.{NUID().next().decode()}"
        self.max_payload = 1024 * 1024
        self.version = (0, 0)
        self.restarted = False
        self._server = ("", "")
        self.ticked = config.clock.monotonic()
        self._api = f"$JS.{options.domain}.API" if options.domain else "$JS.API"
        self._members: list[Member] = []
        self.on_complaint: Callable[[str], None] = lambda _: None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._lost = asyncio.Event()
        self._gone: asyncio.Future[None] | None = None
        self.round_trips = RoundTrips(config.clock.monotonic)
        self._arrivals: list[asyncio.Future[None]] = []
        self._counter = 0
        self._closed = False

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; raises `BrokerUnavailable` or `AccessDenied`."""
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                await self._connect()
        except TimeoutError as exc:
            raise BrokerUnavailable(f"{self._url} did not answer in {self._config.connect_timeout:g} s") from exc
        self.spawn(self._keep())
        self.spawn(self._beat())

    async def aclose(self) -> None:
        """Close the connection and end all tasks."""
        if self._closed:
            return
        self._closed = True
        client, self.client = self.client, None
        self._drop("the adapter was closed")
        self._greet()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if client is not None:
            with contextlib.suppress(errors.Error, OSError):
                await client.flush(timeout=1)  # the last acknowledgements are out
            self._abandon(client)
        self._abandon_new()
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _abandon_new(self) -> None:
        """End a connection that came into being while the adapter was closed."""
        if self.client is not None:
            self._abandon(self.client)
            self.client = None

    def _abandon(self, client: NatsClient) -> None:
        """End a connection in the background. Nothing cancels that half-way, or tasks of nats-py's would be left."""
        task = asyncio.get_running_loop().create_task(client.abandon())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        task.add_done_callback(self._ended)

    async def join(self, member: Member) -> None:
        """Add a member; it is attached now, and again after each reconnect."""
        self._members.append(member)
        try:
            await member.attach(self.use())
        except errors.Error as exc:
            raise translate(exc, f"subscribing at {self._url}") from exc

    def leave(self, member: Member) -> None:
        """Remove a member."""
        if member in self._members:
            self._members.remove(member)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something in the background that ends with the link."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a background task of the nats adapter failed", exc_info=error)

    # -- use ----------------------------------------------------------------------------------------------------

    def use(self) -> NatsClient:
        """Return the client.

        Raises:
            BrokerUnavailable: There is no connection now.
            ClosedError: The adapter was closed.
        """
        if self.client is None:
            if self._closed:
                raise ClosedError("the nats adapter is closed")
            raise BrokerUnavailable(f"no connection to {self._url}")
        return self.client

    async def ready(self) -> None:
        """Wait for a connection as long as the first one may take; raises `BrokerUnavailable` if there is none."""
        if self.client is None and not self._closed:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._arrivals.append(waiter)
            await asyncio.wait([waiter], timeout=self._config.connect_timeout)
        self.use()

    def number(self) -> int:
        """Return a number that was not used before."""
        self._counter += 1
        return self._counter

    async def subscribe(
        self, subject: str, handler: Handler, queue: str = "", *, stored: Callable[[int], None] | None = None
    ) -> NatsSubscription:
        """Call *handler* with each message of *subject*; see `NatsClient.listen`."""
        return await self.use().listen(subject, handler, queue, stored=stored)

    def message(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> Msg:
        """Return what a `Handler` was called with as nats-py's message."""
        return Msg(self.use(), subject.decode(), reply.decode(), body, parse_headers(headers))

    async def drain(self, subscription: NatsSubscription) -> None:
        """End a subscription once everything that the server has sent to it is handled."""
        await self._while_up(subscription.drain())  # type: ignore[no-untyped-call]

    async def call(self, endpoint: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make a JetStream request and return the answer.

        Raises:
            ApiError: JetStream refused it.
            BrokerUnavailable: There was no answer.
        """
        payload = b"" if body is None else json.dumps(body).encode()
        try:
            message = await self._while_up(
                self.use().request(f"{self._api}.{endpoint}", payload, timeout=self._options.timeout)
            )
        except errors.NoRespondersError as exc:
            raise BrokerUnavailable(
                f"{self._url} has no JetStream for this account (yet): nothing answers {self._api}.{endpoint}"
            ) from exc
        except errors.Error as exc:
            raise translate(exc, f"{self._api}.{endpoint} at {self._url}") from exc
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer:
            raise ApiError(endpoint, answer["error"])
        return answer

    def send(self, endpoint: str, body: dict[str, Any], reply: str) -> None:
        """Send a JetStream request whose answers go to *reply*."""
        self.use().write(frame(f"{self._api}.{endpoint}", json.dumps(body).encode(), reply))

    async def sync(self) -> None:
        """Return once the server has read all that was written so far; raises `BrokerUnavailable`."""
        await self.reading()

    def reading(self, *, patience: float = 0.0) -> asyncio.Future[None]:
        """Return a future that is done once the server has read all that was written so far; see `RoundTrips`.

        Raises:
            BrokerUnavailable: There is no connection; the future, if it breaks first.
        """
        return self.round_trips.ask(self.use(), patience)

    def prove(self, age: float) -> None:
        """See to it that it is known when what is read was written, to *age* seconds; see `RoundTrips.prove`."""
        if self.client is not None:
            self.round_trips.prove(self.client, age)

    async def _while_up(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await something of the client's, but not longer than its connection lives."""
        gone = self._gone
        task = asyncio.ensure_future(coroutine)
        try:
            waiting: set[asyncio.Future[Any]] = {task} if gone is None else {task, gone}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
        if task.cancelled() or not task.done():
            raise BrokerUnavailable(f"the connection to {self._url} was lost")
        return task.result()

    # -- connecting ---------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Try each server once; raise the last one's error."""
        servers = list(dict.fromkeys(self._dialer.servers + self._discovered))
        random.shuffle(servers)
        failure: BrokerError = BrokerUnavailable(f"no server in {self._url}")
        for server in servers:
            began = self._config.clock.monotonic()
            try:
                client = await self._dialer.dial(
                    server, on_error=self._on_error, on_lost=self._on_lost, on_lame_duck=self._on_lame_duck
                )
            except BrokerError as exc:
                failure = exc
                continue
            self.round_trips.proven = began  # whatever comes over this connection was written later
            await self._install(client)
            return
        raise failure

    async def _install(self, client: NatsClient) -> None:
        version = client.connected_server_version
        self.version = (version.major, version.minor)
        self.max_payload = client.max_payload
        self._discovered = [self._dialer.address(s) for s in client.discovered_servers]
        before, self._server = self._server, client.server
        self.restarted = before[0] not in ("", self._server[0]) and before[1] == self._server[1]
        self.client = client
        self._lost.clear()
        self._gone = asyncio.get_running_loop().create_future()
        for member in list(self._members):
            await member.attach(client)
        self._on_health(Health(True))
        self._greet()

    def _greet(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        for waiter in arrivals:
            if not waiter.done():
                waiter.set_result(None)

    def _on_error(self, client: NatsClient, exc: Exception) -> None:
        if self.client is client:
            _log.warning("%s: %s", self._url, exc)
            self.on_complaint(str(exc))

    def _on_lost(self, client: NatsClient) -> None:
        if self.client is client:
            self._lost.set()

    def _on_lame_duck(self, client: NatsClient) -> None:
        if self.client is client and client.connected_url is not None:
            servers = {*self._dialer.servers, *map(self._dialer.address, client.discovered_servers)}
            if servers - {self._dialer.address(client.connected_url)}:
                self._lost.set()  # the others take us now; this one would throw us out later

    # -- keeping ------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        # Closing is looked at, too: asyncio.wait_for, which nats-py connects with, may swallow a cancellation.
        while not self._closed:
            await self._lost.wait()
            old, self.client = self.client, None
            if old is not None:
                self._discovered = [self._dialer.address(s) for s in old.discovered_servers] or self._discovered
            self._drop(f"the connection to {self._url} was lost")
            _log.warning("the connection to %s was lost", self._url)
            if old is not None:
                self._abandon(old)
            await self._reconnect()

    async def _reconnect(self) -> None:
        wait, longest = _BACKOFF
        while not self._closed:
            try:
                async with asyncio.timeout(self._config.connect_timeout):
                    await self._connect()
            except (BrokerError, ConfigError, TimeoutError, errors.Error) as exc:
                broken, self.client = self.client, None
                if broken is not None:  # it was lost while members were joining it, and some may wait for it
                    self._drop(f"the connection to {self._url} was lost")
                    self._abandon(broken)
                self._on_health(Health(False, str(translate(exc, f"connecting to {self._url}"))))
            else:
                _log.info("connected to %s again", self._url)
                return
            await self._config.clock.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients
            wait = min(wait * 2, longest)

    def _drop(self, why: str) -> None:
        self._on_health(Health(False, why))
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        self.round_trips.fail(BrokerUnavailable(why))
        for member in list(self._members):
            member.detach()

    async def _beat(self) -> None:
        """Tick, and probe the connection: a dead peer says nothing."""
        probe: asyncio.Task[None] | None = None
        while True:
            await asyncio.sleep(_TICK)
            self.ticked = self._config.clock.monotonic()
            if self.client is None:
                continue
            for member in list(self._members):
                member.tick()
            if probe is None or probe.done():
                probe = self.spawn(self._probe(self.client))

    async def _probe(self, client: Client) -> None:
        """Declare the connection lost when two round trips in a row take too long."""
        await asyncio.sleep(_PROBE)
        for _ in range(2):
            if self.client is not client:
                return
            try:
                await client.rtt(timeout=int(_PROBE))
            except errors.TimeoutError:
                continue
            except errors.Error:
                break
            if client.is_connected:
                return
            break
        if self.client is client:
            self._lost.set()
