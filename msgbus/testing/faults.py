"""Break the network between a client and its broker: a TCP proxy that cuts, stalls, delays and half-closes.

    with FaultProxy("127.0.0.1", broker_port) as proxy:
        ...            # connect the client to proxy.host and proxy.port
        proxy.cut()    # connections are reset and new ones refused
        proxy.heal()   # as if nothing had been

The proxy runs on a thread and an event loop of its own, so it works from any test, synchronous or not. It passes bytes
on without reading them: TLS works as without it. Some brokers tell clients where to connect next (Kafka's advertised
listeners, SQS's queue URLs): they have to be told the proxy's address, or clients go around it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["FaultProxy", "ProxyCounters", "Side"]

Side = Literal["client", "broker"]
"""One end of the connections that a proxy stands between."""

_OTHER: dict[Side, Side] = {"client": "broker", "broker": "client"}
_CHUNK = 65_536
_WINDOW = 64  # chunks on their way in one direction; with too few of them a delay would limit the throughput too
_CALL_TIMEOUT = 10.0  # seconds for the proxy's thread to do as it is told
_BACKLOG = 128  # connections that wait to be accepted
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, which the peer notices at once


@dataclass(slots=True)
class ProxyCounters:
    """What has gone through a proxy so far.

    Args:
        accepted: Connections that clients opened.
        resets: Connections that the proxy reset, on request or at random.
        to_broker: Bytes passed on to the broker.
        to_client: Bytes passed on to clients.
    """

    accepted: int = 0
    resets: int = 0
    to_broker: int = 0
    to_client: int = 0


class FaultProxy:
    """A TCP proxy on the loopback interface whose connections break as told; a context manager.

    Methods may be called from any thread and return when their effect is there. Faults add up until ``heal()``.

    Args:
        host: The broker's host.
        port: The broker's port.
        listen_port: The proxy's own port; 0 takes a free one. It stays the same, and reserved, until ``close()``.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, *, listen_port: int = 0) -> None:
        # Bound for as long as the proxy lives and never listening: while the proxy refuses connections, neither another
        # server nor an outgoing connection can take its port.
        self._reservation = _bound_socket(listen_port)
        self.port: int = self._reservation.getsockname()[1]
        self.counters = ProxyCounters()
        self._target = (host, port)
        self._faults = _Faults()
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"fault-proxy-{self.port}", daemon=True)
        self._thread.start()
        self._call(self._listen)

    @property
    def connections(self) -> int:
        """How many client connections are open now."""
        return len(self._links)

    def cut(self) -> None:
        """Reset all connections and refuse new ones until ``heal()``."""
        self._call(self._refuse)

    def drop(self) -> None:
        """Reset all connections, once; new ones are served."""
        self._call(self._reset_all)

    def stall(self, to: Side | None = None) -> None:
        """Keep all connections open and pass nothing on until ``heal()``; new ones are accepted and hear nothing.

        Args:
            to: Stall only what flows to this side. ``"client"`` lets requests reach the broker and loses its answers.
        """
        for side in _OTHER if to is None else (to,):
            self._call(self._faults.flowing[side].clear)

    def delay(self, seconds: float) -> None:
        """Let every byte arrive *seconds* later, in both directions, until ``heal()``; the throughput stays."""
        self._faults.delay = seconds

    def half_close(self, tell: Side = "broker") -> None:
        """End every connection for one side only: the other keeps an open one on which nothing answers any more.

        Args:
            tell: The side that sees its connection end. ``"broker"``: clients believe in connections that the broker
                has forgotten. ``"client"``: the broker believes in clients that have gone, with all that they hold.
        """

        def half_close() -> None:
            for link in self._links:
                link.half_close(tell)

        self._call(half_close)

    def cut_randomly(self, rate: float, *, seed: int = 0) -> None:
        """Reset connections at random until ``heal()``.

        Args:
            rate: The chance, from 0 to 1, that a piece of data from a client resets its connection instead of passing.
            seed: Starts the sequence of draws.
        """
        self._faults.draw = random.Random(seed).random  # noqa: S311 - has to repeat, not to be secret
        self._faults.cut_rate = rate

    def heal(self) -> None:
        """End all faults. What a stall held back is passed on; what was reset or half-closed stays so."""
        self._call(self._heal)

    def close(self) -> None:
        """Reset all connections and end the proxy. May be called again."""
        if self._loop.is_closed():
            return
        self._call(self._refuse)
        self._call(self._finish)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT)
        self._loop.close()
        self._reservation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FaultProxy {self.host}:{self.port} -> {self._target[0]}:{self._target[1]}, {self.connections} open>"

    def _call(self, step: Callable[[], Coroutine[None, None, None] | None]) -> None:
        """Run *step* on the proxy's thread and wait for it."""

        async def run() -> None:
            if (coroutine := step()) is not None:
                await coroutine

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(_CALL_TIMEOUT)

    def _listen(self) -> None:
        """Take connections in; not with `asyncio.start_server`, which leaks what comes in as it is closed."""
        self._listener = _bound_socket(self.port)
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the client has gone again
            return
        connection.setblocking(False)
        self.counters.accepted += 1
        link = _Link(self.counters, self._faults, connection)
        self._links.add(link)
        link.start(*self._target).add_done_callback(lambda _: self._links.discard(link))

    def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self._reset_all()

    def _reset_all(self) -> None:
        for link in self._links:
            link.reset()

    def _heal(self) -> None:
        self._faults.heal()
        if self._listener is None:
            self._listen()

    async def _finish(self) -> None:
        current = asyncio.current_task()
        if rest := [task for task in asyncio.all_tasks() if task is not current]:
            await asyncio.wait(rest)


@dataclass(slots=True)
class _Faults:
    """What is broken at present; shared by a proxy and its links."""

    delay: float = 0.0
    cut_rate: float = 0.0
    draw: Callable[[], float] = field(default=random.random)
    flowing: dict[Side, asyncio.Event] = field(default_factory=lambda: {side: asyncio.Event() for side in _OTHER})

    def __post_init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        self.delay = self.cut_rate = 0.0
        for event in self.flowing.values():
            event.set()


@dataclass(slots=True)
class _Stream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        if connection.fileno() != -1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.writer.transport.abort()


class _Link:
    """One client's connection and the one to the broker behind it."""

    def __init__(self, counters: ProxyCounters, faults: _Faults, client: socket.socket) -> None:
        self._counters = counters
        self._faults = faults
        self._client = client
        self._streams: dict[Side, _Stream] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_reset = False
        self._severed = False  # half-closed: what still arrives is read and thrown away

    def start(self, host: str, port: int) -> asyncio.Task[None]:
        """Pass bytes on in both directions until both have ended, or the link is reset."""
        self._task = asyncio.get_running_loop().create_task(self._run(host, port))
        return self._task

    async def _run(self, host: str, port: int) -> None:
        try:
            self._streams["client"] = _Stream(*await asyncio.open_connection(sock=self._client))
            if self._is_reset:
                raise ConnectionResetError
            self._streams["broker"] = _Stream(*await asyncio.open_connection(host, port))
            async with asyncio.TaskGroup() as pumps:
                for side in _OTHER:
                    pumps.create_task(self._pump(side))
        except OSError:  # the broker refuses: so do we, as well as one can after the kernel has accepted
            self._streams["client"].reset()
        except asyncio.CancelledError:  # by reset(), and by nobody else: the link's task is ours
            pass
        finally:
            for stream in self._streams.values():
                stream.writer.close()

    def reset(self) -> None:
        self._counters.resets += 1
        self._is_reset = True
        for stream in self._streams.values():
            stream.reset()
        if self._streams and self._task is not None:  # before that a cancelled task would leave its socket open
            self._task.cancel()

    def half_close(self, tell: Side) -> None:
        self._severed = True
        if tell in self._streams:
            self._streams[tell].writer.close()

    async def _pump(self, to: Side) -> None:
        """Carry one direction: reading and passing on are two tasks, so that a delay does not slow the reading."""
        window: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WINDOW)
        async with asyncio.TaskGroup() as halves:
            halves.create_task(self._read(_OTHER[to], window))
            halves.create_task(self._pass_on(to, window))

    async def _read(self, side: Side, window: asyncio.Queue[tuple[float, bytes]]) -> None:
        clock = asyncio.get_running_loop().time
        data = b"more"
        while data:
            try:
                data = await self._streams[side].reader.read(_CHUNK)
            except OSError:
                data = b""  # a reset is an end like another; it too passes only when the link flows
            if side == "client" and data and self._faults.cut_rate and self._faults.draw() < self._faults.cut_rate:
                self.reset()
                return
            await window.put((clock() + self._faults.delay, data))

    async def _pass_on(self, to: Side, window: asyncio.Queue[tuple[float, bytes]]) -> None:
        clock = asyncio.get_running_loop().time
        writer = self._streams[to].writer
        data = b"more"
        while data:
            due, data = await window.get()
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            await self._faults.flowing[to].wait()
            if self._severed:
                continue
            try:
                await self._write(writer, data)
            except OSError:  # the peer is gone: end the other direction as well
                self.reset()
            if to == "broker":
                self._counters.to_broker += len(data)
            else:
                self._counters.to_client += len(data)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if data:
            writer.write(data)
            await writer.drain()
        elif writer.can_write_eof():
            writer.write_eof()


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Lets the listener share the port with the reservation, and listen again while old connections linger.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((FaultProxy.host, port))
    except OSError:
        bound.close()
        raise
    return bound
