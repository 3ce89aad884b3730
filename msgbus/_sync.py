"""The bus for code without asyncio: the same verbs, blocking, on an event loop in a background thread."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from msgbus._channel import Channel, Queue, RequestReply, ScatterGather, Topic
from msgbus._time import Duration
from msgbus._typing import ManyOptions, PublishOptions
from msgbus.errors import MsgbusError

if TYPE_CHECKING:
    from msgbus._bus import Bus
    from msgbus._session import Gathered, HealthReport
    from msgbus.adapter import Stats

__all__ = ["SyncBus"]

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")


class SyncBus:
    """``bus.sync``: what `Bus` does, for Flask, Django and scripts.

    It opens the bus at the first call (in each process, so it survives a pre-forking server) and closes it when the
    program ends, or use it as ``with bus.sync:`` to choose when. Safe to call from several threads. The arguments and
    errors of each method are those of the method of `Bus` with the same name.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        """Open the bus."""
        self._opened()
        return self

    def __exit__(self, *_: object) -> None:
        """Drain the handlers and close the bus."""
        self.close()

    def close(self) -> None:
        """Drain the handlers and close the bus; it opens again at the next call."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is None or self._pid != os.getpid():
                return
            try:
                asyncio.run_coroutine_threadsafe(self._bus.__aexit__(None, None, None), loop).result()
            finally:
                loop.call_soon_threadsafe(loop.stop)
                atexit.unregister(self.close)

    def send(self, queue: Queue[T], payload: T, **options: Unpack[PublishOptions]) -> None:
        """Send a message to a queue; return once the broker has confirmed it."""
        self._call(self._bus.send(queue, payload, **options))

    def publish(self, topic: Topic[T], payload: T, **options: Unpack[PublishOptions]) -> None:
        """Publish a message to every group of a topic; return once the broker has confirmed it."""
        self._call(self._bus.publish(topic, payload, **options))

    def send_many(self, queue: Queue[T], payloads: Iterable[T], **options: Unpack[ManyOptions]) -> int:
        """Send many messages, pipelined; return how many."""
        return self._call(self._bus.send_many(queue, payloads, **options))

    def publish_many(self, topic: Topic[T], payloads: Iterable[T], **options: Unpack[ManyOptions]) -> int:
        """Publish many messages to a topic, pipelined; return how many."""
        return self._call(self._bus.publish_many(topic, payloads, **options))

    def request(
        self, channel: RequestReply[Q, R], payload: Q, *, timeout: Duration = 10.0, **options: Unpack[PublishOptions]
    ) -> R:
        """Send a request and return its answer."""
        return self._call(self._bus.request(channel, payload, timeout=timeout, **options))

    def gather(
        self,
        channel: ScatterGather[Q, R],
        payload: Q,
        *,
        timeout: Duration = 10.0,
        quorum: int | None = None,
        **options: Unpack[PublishOptions],
    ) -> Gathered[R]:
        """Send a request to every group of a channel and gather their answers."""
        return self._call(self._bus.gather(channel, payload, timeout=timeout, quorum=quorum, **options))

    def start(self, *, only: Iterable[str] = ()) -> None:
        """Start the handlers in the background."""
        self._call(self._bus.start(only=only))

    def drain(self, timeout: Duration | None = None) -> None:
        """Stop the handlers."""
        self._call(self._bus.drain(timeout))

    def stats(self, channel: Channel[Any] | str, *, group: str | None = None) -> Stats:
        """Return a snapshot of one subscription."""
        return self._call(self._bus.stats(channel, group=group))

    def health(self) -> HealthReport:
        """Return whether the brokers are reachable and the handlers are receiving."""
        self._opened()
        return self._bus.health()

    def _call(self, coroutine: Coroutine[Any, Any, R]) -> R:
        try:
            loop = self._opened()
        except BaseException:
            coroutine.close()
            raise
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    def _opened(self) -> asyncio.AbstractEventLoop:
        _refuse_event_loop()
        with self._lock:
            if self._loop is not None and self._pid == os.getpid():
                return self._loop
            if self._loop is not None:
                self._bus.forget_session()  # a forked child: the parent's connections are not ours to close
            loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(loop,), name="msgbus-sync", daemon=True).start()
            try:
                asyncio.run_coroutine_threadsafe(self._bus.__aenter__(), loop).result()
            except BaseException:
                loop.call_soon_threadsafe(loop.stop)
                raise
            self._loop, self._pid = loop, os.getpid()
            atexit.register(self.close)
            return loop


def _refuse_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise MsgbusError("bus.sync would block this event loop; use the bus itself with await")


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
