"""Run a bus until a signal says stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from msgbus.errors import BrokerUnavailable

if TYPE_CHECKING:
    from msgbus._bus import Bus

__all__ = ["run", "serve"]

_log = logging.getLogger("msgbus")


def run(bus: Bus, *, only: Sequence[str] = ()) -> None:
    """Run *bus* on a new event loop (uvloop's where it is installed) until SIGTERM or SIGINT."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(bus, only=only))


async def serve(bus: Bus, *, only: Sequence[str] = ()) -> None:
    """Consume until a signal arrives, drain, and return; a second signal stops without waiting for handlers."""
    loop = asyncio.get_running_loop()
    stop, now = asyncio.Event(), asyncio.Event()

    def on_signal(name: str) -> None:
        if stop.is_set():
            _log.warning("%s again: stopping at once", name)
            now.set()
        else:
            _log.info("%s: finishing what runs; once more stops at once", name)
            stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        if not await _connect(bus, stop):
            return
        try:
            await bus.start(only=only)
            _log.info(
                "consuming %s", ", ".join(r.label for r in bus.subscriptions if not only or r.channel.name in only)
            )
            await _first(stop.wait(), bus.wait())
            await _drain(bus, now)
        finally:
            await bus.__aexit__()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _connect(bus: Bus, stop: asyncio.Event) -> bool:
    """Open the bus; give it up, and return False, when a signal comes first: there is nothing to finish yet."""
    opening, stopping = asyncio.ensure_future(bus.__aenter__()), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not opening.done():
            opening.cancel()
    try:
        await opening
    except (asyncio.CancelledError, BrokerUnavailable):
        if stop.is_set():  # whatever a broker that is away says to being given up
            return False
        raise
    return True


async def _drain(bus: Bus, now: asyncio.Event) -> None:
    draining = asyncio.ensure_future(bus.drain())
    hurry = asyncio.ensure_future(now.wait())
    await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        bus.hurry()
    hurry.cancel()
    await draining


async def _first(*awaitables: object) -> None:
    """Return when the first one does; raise what it raised."""
    tasks = [asyncio.ensure_future(a) for a in awaitables]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - optional, and only programs that run a bus use it
    except ModuleNotFoundError:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
