"""The publishing side of the workload: lanes that publish one message after the other, each under its own seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

from msgbus import Bus
from msgbus.errors import BrokerUnavailable, PublishError, PublishTimeout, RequestError
from msgbus.testing.chaos._workload import Channels, Setup
from msgbus.testing.history import Recorder

__all__ = ["Producers"]

_BUSES = 3
_LANES = 4
_POISON = 99
_REQUEST_TIMEOUT = 5.0
_MAX_DELAY = 3.0
_ROW = 3
"""How many messages of a key follow each other at once."""
_SLOW = 0.3
"""Seconds that the first of them takes: a publish takes far less, even on a slow machine."""


class Producers:
    """Publish until told to stop.

    Args:
        setup: The run's.
        recorder: Records every attempt.
        seed: Decides what each lane publishes.
        rate: Messages per second, all lanes together.
        delays: Whether some messages are delayed.
    """

    def __init__(self, setup: Setup, recorder: Recorder, *, seed: int, rate: float, delays: bool) -> None:
        self._setup = setup
        self._recorder = recorder
        self._seed = seed
        self._pause = _BUSES * _LANES / rate
        self._delays = delays
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        self._lanes: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect and begin."""
        for number in range(_BUSES):
            bus = await self._stack.enter_async_context(self._setup.bus(service=f"producer-{number}"))
            for lane in range(_LANES):
                name = f"p{number}{'abcd'[lane]}"
                lane_of = _Lane(bus, self._setup, self._recorder, name, f"{self._seed} {name}", delays=self._delays)
                self._lanes.append(asyncio.create_task(lane_of.run(self._stop, self._pause)))

    async def stop(self) -> None:
        """Publish no more; return when what is under way has come to its end."""
        self._stop.set()
        await asyncio.gather(*self._lanes)
        await self._stack.aclose()

    def check(self) -> None:
        """Raise what a lane failed with: that is a mistake of the run, or a bug."""
        for lane in self._lanes:
            if lane.done():
                lane.result()


class _Lane:
    def __init__(self, bus: Bus, setup: Setup, recorder: Recorder, name: str, seed: str, *, delays: bool) -> None:
        self._bus = bus
        self._recorder = recorder
        self._name = name
        self._random = random.Random(seed)  # noqa: S311 - has to repeat, not to be secret
        self._delays = delays
        self._channels = Channels()
        self._number = 0
        kinds: list[tuple[Callable[[str], Awaitable[None]], int]] = [(self._work, 40), (self._once, 15)]
        kinds += [(self._keyed, 10)] if setup.ordered else []
        kinds += [(self._event, 15)] if setup.grouped else []
        kinds += [(self._ask, 10)] if setup.asked else []
        self._kinds = [kind for kind, _ in kinds]
        self._weights = [weight for _, weight in kinds]

    async def run(self, stop: asyncio.Event, pause: float) -> None:
        """Publish until *stop*, with *pause* seconds between two messages on the average."""
        while not stop.is_set():
            self._number += 1
            (kind,) = self._random.choices(self._kinds, self._weights)
            # What it raises is written down; the application that this stands for would decide what to do.
            with suppress(PublishError, BrokerUnavailable, RequestError):
                await kind(f"{self._name}-{self._number}")
            await asyncio.sleep(self._random.uniform(0, 2 * pause))

    async def _work(self, id: str) -> None:
        draw = self._random.random()
        if draw < 0.03:
            with self._recorder.publishing("work", id, detail="garbage"):
                await self._bus.send(self._channels.garbage, b"\xff\x00 no JSON", id=id)
        elif draw < 0.10:
            expires = self._random.uniform(0.5, 4.0)
            with self._recorder.publishing("work", id, expires=expires):
                await self._bus.send(self._channels.work, self._task(id), id=id, expires=expires)
        elif draw < 0.20 and self._delays:
            delay = self._random.uniform(0.2, _MAX_DELAY)
            with self._recorder.publishing("work", id, delay=delay):
                await self._bus.send(self._channels.work, self._task(id), id=id, delay=delay)
        else:
            with self._recorder.publishing("work", id):
                await self._bus.send(self._channels.work, self._task(id), id=id)

    async def _once(self, id: str) -> None:
        task = self._task(id)
        for _ in range(1 + (self._random.random() < 0.3)):  # some are published twice, as careful publishers do
            with self._recorder.publishing("once", id):
                await self._bus.send(self._channels.once, task, id=id)

    async def _keyed(self, id: str) -> None:
        """Publish some of one key in a row; the first takes its time, so that another one beside it would show."""
        key = f"{self._name}-{self._random.choice('xyz')}"  # of this lane alone, so that its order is known
        for place in range(_ROW):
            task = {**self._task(f"{id}.{place}"), "key": key}
            if place == 0:
                task["takes"] = _SLOW
            try:
                await self._send_keyed(task)
            except PublishTimeout:  # the broker may have it: the same again, before the next one
                await self._send_keyed(task)

    async def _send_keyed(self, task: dict[str, Any]) -> None:
        with self._recorder.publishing("keyed", task["id"], key=task["key"]):
            await self._bus.send(self._channels.keyed, task, id=task["id"])

    async def _event(self, id: str) -> None:
        with self._recorder.publishing("events", id):
            await self._bus.publish(self._channels.events, self._task(id), id=id)

    async def _ask(self, id: str) -> None:
        with self._recorder.publishing("echo", id):
            answer = await self._bus.request(self._channels.echo, id, timeout=_REQUEST_TIMEOUT, id=id)
        if answer != f"re: {id}":
            self._recorder.complain(f"the answer to {id!r} was {answer!r}", id=id)

    def _task(self, id: str) -> dict[str, Any]:
        draw = self._random.random()
        fail = _POISON if draw < 0.04 else 1 if draw < 0.15 else 2 if draw < 0.2 else 0
        return {"id": id, "fail": fail, "takes": round(self._random.uniform(0, 0.03), 4)}
