"""Signals that come early: while a bus connects, and before its drain has begun."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from msgbus import Bus, Queue
from msgbus._run import serve
from msgbus.errors import BrokerUnavailable
from msgbus_memory import MemoryAdapter
from tests.core.support import Order, eventually, run

orders = Queue("orders", Order)


def test_signals_before_the_drain_has_begun_are_not_forgotten() -> None:
    """Two signals while handlers are being started stop at once, like two signals later."""
    bus, started = Bus("memory://early", drain_timeout=60), asyncio.Event()

    @bus.on(orders)
    async def handle(order: Order) -> None:
        if not started.is_set():
            started.set()
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    async def main() -> None:
        async with Bus("memory://early") as other:
            await other.send(orders, Order(id="1"))
            began = time.monotonic()
            await serve(bus)
            assert time.monotonic() - began < 10
            assert (await other.stats(orders)).ready == 1

    run(main(), within=30)
    assert started.is_set()


@pytest.mark.parametrize("last_word", [asyncio.CancelledError, BrokerUnavailable])
def test_a_signal_while_connecting_gives_up(monkeypatch: pytest.MonkeyPatch, last_word: type[BaseException]) -> None:
    """A broker that does not answer does not keep a program from being stopped, nor makes its end an error."""
    connecting, closed = asyncio.Event(), asyncio.Event()

    class Silent(MemoryAdapter):
        async def open(self) -> None:
            connecting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise last_word from None

        async def aclose(self) -> None:
            closed.set()

    monkeypatch.setattr("msgbus._connections.adapter_class", lambda _: Silent)

    async def main() -> None:
        serving = asyncio.ensure_future(serve(Bus("memory://")))
        await eventually(connecting.is_set)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 5)

    run(main())
    assert closed.is_set()
