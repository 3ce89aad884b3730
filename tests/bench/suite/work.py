"""What a case does, written once for all contenders."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from tests.bench.suite.contender import Contender, Place, at_once
from tests.bench.suite.load import Handler, Load, Lost, Measured, Tally, Watch, bodies, number_of

__all__ = [
    "BACKLOG",
    "IN_FLIGHT",
    "Run",
    "dispatch",
    "drain",
    "end_to_end",
    "fill_backlog",
    "importing",
    "keyed",
    "latency",
    "peak_memory",
    "publish_from_tasks",
    "publish_many",
    "publish_one",
    "requests",
    "start",
    "subscriptions",
]

KIB = 1024
IN_FLIGHT = 100
CONCURRENCY = 64
BACKLOG = 100_000

Run = Callable[[Contender, Load], Awaitable[Measured]]


async def publish_one(contender: Contender, load: Load) -> Measured:
    """One after the other, each confirmed before the next."""
    return await _publish(contender, load, width=1)


async def publish_from_tasks(contender: Contender, load: Load) -> Measured:
    """One by one from many tasks, as the handlers of a web server do."""
    return await _publish(contender, load, width=IN_FLIGHT)


async def publish_many(contender: Contender, load: Load) -> Measured:
    """The quickest way the library has."""
    return await _publish(contender, load, width=0)


async def _publish(contender: Contender, load: Load, *, width: int) -> Measured:
    sent, place = list(bodies(load.count, load.size)), Place(load.queue)
    await contender.create(place)
    async with contender.publisher(place) as publisher:
        first, *rest = sent
        await publisher.one(first)  # whatever opens with the first message
        watch = Watch()
        if width:
            await at_once(width, rest, publisher.one)
        else:
            await publisher.many(rest)
        figure = watch.rate(len(rest))
    # What can be consumed was there.
    tally = Tally(load.count, load.patience)
    async with contender.consumer([place], Handler(tally), concurrency=CONCURRENCY):
        await tally.figure()
    return tally.check(figure)


async def _fill(contender: Contender, load: Load, place: Place) -> None:
    await contender.create(place)
    async with contender.publisher(place) as publisher:
        await publisher.many(list(bodies(load.count, load.size)))


def drain(
    *, wait: float = 0.0, failing: int = 0, batch: int = 0, concurrency: int = CONCURRENCY, partitions: int = 0
) -> Run:
    """A backlog, with handlers that do nothing, wait, fail once, or take batches."""

    async def run(contender: Contender, load: Load) -> Measured:
        place = Place(load.queue, partitions=partitions)
        await _fill(contender, load, place)
        tally = Tally(load.count, load.patience)
        handler = Handler(tally, wait=wait, failing=failing, batch=batch)
        async with contender.consumer([place], handler, concurrency=concurrency):
            figure = await tally.figure()
        return tally.check(figure)

    return run


def keyed(*, least: float, most: float, concurrency: int = CONCURRENCY, partitions: int = 0) -> Run:
    """Handlers of *least* to *most* seconds; the messages of a key in order and one at a time, or no figure."""

    async def run(contender: Contender, load: Load) -> Measured:
        place = Place(load.queue, keys=load.part, partitions=partitions)
        await _fill(contender, load, place)
        tally = Tally(load.count, load.patience)
        dice = random.Random(load.part)
        handler = _InOrder(tally, load.part, [dice.uniform(least, most) for _ in range(load.count)])
        async with contender.consumer([place], handler, concurrency=concurrency):
            figure = await tally.figure()
        return tally.check(figure)

    return run


class _InOrder(Handler):
    """Refuses a message that came before its turn."""

    def __init__(self, tally: Tally, keys: int, waits: list[float]) -> None:
        super().__init__(tally, wait=max(waits))
        self._keys = keys
        self._waits = waits
        self._last: dict[int, int] = {}
        self._busy: set[int] = set()

    async def __call__(self, body: bytes | str) -> None:
        number = number_of(body)
        key = number % self._keys
        if key in self._busy or self._last.get(key, -1) >= number:
            raise Lost(f"message {number} of key {key} came while or after {self._last.get(key)}")
        self._busy.add(key)
        await asyncio.sleep(self._waits[number])
        self._busy.discard(key)
        self._last[key] = number
        self.tally.add(body)


async def end_to_end(contender: Contender, load: Load) -> Measured:
    """Publish and consume at the same time."""
    sent, place = list(bodies(load.count, load.size)), Place(load.queue)
    tally = Tally(load.count, load.patience)
    await contender.create(place)
    async with (
        contender.consumer([place], Handler(tally), concurrency=CONCURRENCY),
        contender.publisher(place) as publisher,
    ):
        first, *rest = sent
        await publisher.one(first)  # whatever opens with the first message
        tally.restart()
        await publisher.many(rest)
        figure = await tally.figure()
    return tally.check(figure)


class _Arrivals(Handler):
    """Notes how long each message took."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self.sent = [0.0] * tally.count
        self.took = [0.0] * tally.count

    def blocking(self, body: bytes | str) -> None:
        number = number_of(body)
        if not self.took[number]:
            self.took[number] = time.perf_counter() - self.sent[number]
        self.tally.add(body)


async def latency(contender: Contender, load: Load) -> Measured:
    """Publish one by one at a given rate; the milliseconds from before the publish until the handler runs.

    Without a rate it says instead how many messages per second come through that way.
    """
    place, tally = Place(load.queue), Tally(load.count, load.patience)
    arrivals = _Arrivals(tally)
    await contender.create(place)
    async with (
        contender.consumer([place], arrivals, concurrency=CONCURRENCY),
        contender.publisher(place) as publisher,
    ):

        async def publish(body: bytes) -> None:
            arrivals.sent[number_of(body)] = time.perf_counter()
            await publisher.one(body)

        watch = Watch()
        if load.rate:
            await _paced(list(bodies(load.count, load.size)), load.rate, publish)
        else:
            await at_once(IN_FLIGHT, list(bodies(load.count, load.size)), publish)
        await tally.figure()
        figure = watch.rate(load.count)
    if not load.rate:
        return tally.check(figure)
    took = sorted(arrivals.took)
    p50, p99 = (took[int(len(took) * part)] * 1e3 for part in (0.5, 0.99))
    return tally.check(Measured(p50, figure.cpu, 0, {"p99": p99, "rate": load.rate}))


async def _paced(sent: list[bytes], rate: float, publish: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
    """Begin each publish when its time has come, whether or not those before it are done."""
    began, running = time.perf_counter(), set[asyncio.Task[None]]()
    for number, body in enumerate(sent):
        if (early := began + number / rate - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        task = asyncio.create_task(publish(body))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


def requests(width: int) -> Run:
    """*width* requests under way; each must get its own answer."""

    async def run(contender: Contender, load: Load) -> Measured:
        async with contender.requester(load.queue) as request:
            await request(b"warm up")

            async def ask(body: bytes) -> None:
                if await request(body) != body:
                    raise Lost("a request got another one's answer")

            sent = list(bodies(load.count, load.size))
            watch = Watch()
            await at_once(width, sent, ask)
            return watch.rate(load.count)

    return run


async def fill_backlog(contender: Contender, load: Load) -> Measured:
    """Publish what `peak_memory` finds."""
    await _fill(contender, Load(BACKLOG, load.size, load.queue), Place(load.queue))
    return Measured(0)


async def peak_memory(contender: Contender, load: Load) -> Measured:
    """MiB that this process has grown by after handling the first messages of a backlog that another one made."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = Tally(BACKLOG, load.patience)
    async with contender.consumer([Place(load.queue)], Handler(tally, wait=0.001), concurrency=CONCURRENCY):
        deadline = time.monotonic() + 60
        while tally.calls < load.count:
            if time.monotonic() > deadline:
                raise Lost(f"only {tally.calls} of the first {load.count} messages came")
            await asyncio.sleep(0.05)
    return Measured((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / KIB)


async def dispatch(contender: Contender, load: Load) -> Measured:
    """Microseconds that msgbus itself takes per message, on top of decoding it and calling the handler."""
    from tests.bench.core import dispatch_us  # it needs msgbus, which peers shall not import

    return Measured(await dispatch_us(load.count))


def importing(*, all_of_it: bool) -> Run:
    """Milliseconds to import what a program needs, or the package alone, above an interpreter that imports nothing."""

    async def run(contender: Contender, load: Load) -> Measured:
        modules = contender.modules if all_of_it else contender.modules[:1]
        return Measured(_import_time(modules) * 1e3)

    return run


def _import_time(modules: Sequence[str]) -> float:
    """Return the seconds of CPU that importing takes a new interpreter: on a busy machine steadier than time."""
    code = f"import asyncio, time; began = time.process_time(); import {', '.join(modules)}; "
    code += "print(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


async def start(contender: Contender, load: Load) -> Measured:
    """Milliseconds from connecting until a waiting message is handled."""
    place = Place(load.queue)
    await _fill(contender, load, place)
    tally = Tally(load.count, load.patience)
    began = time.perf_counter()
    async with contender.consumer([place], Handler(tally), concurrency=CONCURRENCY):
        await tally.figure()
        took = time.perf_counter() - began
    return tally.check(Measured(took * 1e3))


async def subscriptions(contender: Contender, load: Load) -> Measured:
    """Publish to and consume from many queues at the same time, a subscription each."""
    places = [Place(f"{load.queue}-{number}", partitions=1) for number in range(load.part)]
    sent = list(bodies(load.count, load.size))
    await contender.create(*places)
    tally = Tally(load.count, load.patience)
    began = time.perf_counter()
    async with contender.consumer(places, Handler(tally), concurrency=1), contextlib.AsyncExitStack() as stack:
        ready = (time.perf_counter() - began) * 1e3
        publishers = [await stack.enter_async_context(contender.publisher(place)) for place in places]
        tally.restart()
        await at_once(16, range(load.part), lambda n: publishers[n].many(sent[n :: load.part]))
        figure = await tally.figure()
    figure = tally.check(figure)
    return Measured(figure.value, figure.cpu, figure.duplicates, {"ready_ms": ready})
