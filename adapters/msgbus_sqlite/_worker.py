"""A thread that owns a connection: `sqlite3` blocks, the event loop must not."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, Generic, TypeVar

from msgbus.errors import ClosedError

__all__ = ["Worker", "fail", "succeed"]

Item = TypeVar("Item")


class Worker(ABC, Generic[Item]):
    """Opens a connection in a thread of its own and serves items from a queue with it.

    Args:
        name: The thread's name.
        connect: Opens the connection.
        translate: Makes a msgbus error of what `sqlite3` raises.
    """

    def __init__(
        self, name: str, connect: Callable[[], sqlite3.Connection], translate: Callable[[Exception], Exception]
    ) -> None:
        self._connect = connect
        self._translate = translate
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # A daemon: a program that ends without closing its bus must end. SQLite survives that.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    async def start(self) -> None:
        """Start the thread and open the connection; raises what opening it raised."""
        self._thread.start()
        await asyncio.shield(self._opened)

    def stop(self) -> None:
        """Take nothing more, and end once what was submitted is finished. Idempotent."""
        if not self._stopped:
            self._stopped = True
            self._items.put(None)

    async def aclose(self) -> None:
        """Stop, and wait until the connection is closed and the thread has ended. Idempotent."""
        self.stop()
        if self._thread.ident is not None:
            await asyncio.shield(self._closed)
            self._thread.join()  # it has nothing left to do

    def put(self, item: Item) -> None:
        """Hand an item to the thread.

        Raises:
            ClosedError: It was closed.
        """
        if self._stopped:
            raise ClosedError("the sqlite adapter is closed")
        self._items.put(item)

    @abstractmethod
    def serve(self, db: sqlite3.Connection) -> None:
        """Serve items until None comes (in the thread)."""

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Call *function* in the event loop (from the thread)."""
        with suppress(RuntimeError):  # the event loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(function, *args)

    def _main(self) -> None:
        try:
            db = self._connect()
        except Exception as exc:  # noqa: BLE001 - handed to whoever awaits `start`
            self.post(fail, self._opened, self._translate(exc))
        else:
            self.post(succeed, self._opened, None)
            with closing(db):
                self.serve(db)
        finally:
            self.post(succeed, self._closed, None)


def succeed(future: asyncio.Future[Any], result: Any) -> None:
    """Resolve *future* unless nobody waits for it any more."""
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[Any], exc: Exception) -> None:
    """Fail *future* unless nobody waits for it any more."""
    if not future.done():
        future.set_exception(exc)
