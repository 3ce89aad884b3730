"""The cases, each written once for all contenders."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tests.bench.suite.contender import Contender, at_once
from tests.bench.suite.load import Handler, Load, Lost, Measured, Tally, Watch, bodies, number_of

__all__ = ["CASES", "Case", "find"]

KIB = 1024
IN_FLIGHT = 100
CONCURRENCY = 64
BACKLOG = 100_000

Run = Callable[[Contender, Load], Awaitable[Measured]]


@dataclass(frozen=True)
class Case:
    """One kind of work.

    Attributes:
        name: What ``CASE=`` calls it.
        title: What the report calls it.
        run: The work.
        unit: Of the figure.
        more_is_better: Whether a higher figure is the better one.
        size: Bytes of a body.
        warm: Messages in the round that warms up.
        most: Messages at most in a measured round.
        fixed: Messages of every measured round, instead of as many as take the time.
        part: What varies inside the case.
        needs: What a contender must be able to do.
        before: Work that another process does first.
        paced: Whether the messages come at half the rate that the slowest contender can carry.
    """

    name: str
    title: str
    run: Run
    unit: str = "messages/s"
    more_is_better: bool = True
    size: int = KIB
    warm: int = 200
    most: int = 30_000
    fixed: int = 0
    part: int = 0
    needs: frozenset[str] = frozenset()
    before: Run | None = None
    paced: bool = False

    @property
    def family(self) -> str:
        """The name without its variant."""
        return self.name.partition("/")[0]


async def _publish_one(contender: Contender, load: Load) -> Measured:
    sent = list(bodies(load.count, load.size))
    await contender.create(load.queue)
    async with contender.publisher(load.queue) as publisher:
        watch = Watch()
        for body in sent:
            await publisher.one(body)
        figure = watch.rate(load.count)
    return await _verified(contender, load, figure)


async def _publish_many(contender: Contender, load: Load) -> Measured:
    sent = list(bodies(load.count, load.size))
    await contender.create(load.queue)
    async with contender.publisher(load.queue) as publisher:
        watch = Watch()
        await publisher.many(sent)
        figure = watch.rate(load.count)
    return await _verified(contender, load, figure)


async def _verified(contender: Contender, load: Load, figure: Measured) -> Measured:
    """Return *figure* if all that was published can be consumed."""
    tally = Tally(load.count, load.patience)
    async with contender.consumer([load.queue], Handler(tally), concurrency=CONCURRENCY):
        await tally.figure()
    return tally.check(figure)


async def _fill(contender: Contender, load: Load) -> Measured:
    await contender.create(load.queue, keyed=bool(load.part))
    async with contender.publisher(load.queue, keys=load.part) as publisher:
        await publisher.many(list(bodies(load.count, load.size)))
    return Measured(0)


def _drain(*, wait: float = 0.0, failing: int = 0) -> Run:
    async def drain(contender: Contender, load: Load) -> Measured:
        await _fill(contender, load)
        tally = Tally(load.count, load.patience)
        handler = Handler(tally, wait=wait, failing=failing)
        async with contender.consumer([load.queue], handler, concurrency=CONCURRENCY):
            figure = await tally.figure()
        return tally.check(figure)

    return drain


async def _keyed(contender: Contender, load: Load) -> Measured:
    """1 ms handlers; the messages of a key in order and one at a time, or no figure."""
    await _fill(contender, load)
    tally = Tally(load.count, load.patience)
    handler = _InOrder(tally, load.part)
    async with contender.consumer([load.queue], handler, concurrency=CONCURRENCY, keys=load.part):
        figure = await tally.figure()
    return tally.check(figure)


class _InOrder(Handler):
    """Refuses a message that came before its turn."""

    def __init__(self, tally: Tally, keys: int) -> None:
        super().__init__(tally, wait=0.001)
        self._keys = keys
        self._last: dict[int, int] = {}
        self._busy: set[int] = set()

    async def __call__(self, body: bytes | str) -> None:
        number = number_of(body)
        key = number % self._keys
        if key in self._busy or self._last.get(key, -1) >= number:
            raise Lost(f"message {number} of key {key} came while or after {self._last.get(key)}")
        self._busy.add(key)
        await asyncio.sleep(self.waits)
        self._busy.discard(key)
        self._last[key] = number
        self.tally.add(body)


async def _end_to_end(contender: Contender, load: Load) -> Measured:
    sent = list(bodies(load.count, load.size))
    tally = Tally(load.count, load.patience)
    await contender.create(load.queue)
    async with (
        contender.consumer([load.queue], Handler(tally), concurrency=CONCURRENCY),
        contender.publisher(load.queue) as publisher,
    ):
        tally.restart()
        await publisher.many(sent)
        figure = await tally.figure()
    return tally.check(figure)


class _Arrivals(Handler):
    """Notes how long each message took."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self.sent = [0.0] * tally.count
        self.took = [0.0] * tally.count

    async def __call__(self, body: bytes | str) -> None:
        self.blocking(body)

    def blocking(self, body: bytes | str) -> None:
        number = number_of(body)
        if not self.took[number]:
            self.took[number] = time.perf_counter() - self.sent[number]
        self.tally.add(body)


async def _latency(contender: Contender, load: Load) -> Measured:
    """Publish one by one at a given rate; the milliseconds from before the publish until the handler runs.

    Without a rate it says instead how many messages per second come through that way.
    """
    tally = Tally(load.count, load.patience)
    arrivals = _Arrivals(tally)
    await contender.create(load.queue)
    async with (
        contender.consumer([load.queue], arrivals, concurrency=CONCURRENCY),
        contender.publisher(load.queue) as publisher,
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


def _requests(width: int) -> Run:
    async def requests(contender: Contender, load: Load) -> Measured:
        async with contender.requester(load.queue) as request:
            await request(b"warm up")

            async def ask(body: bytes) -> None:
                if await request(body) != body:
                    raise Lost("a request got another one's answer")

            sent = list(bodies(load.count, load.size))
            watch = Watch()
            await at_once(width, sent, ask)
            return watch.rate(load.count)

    return requests


async def _fill_backlog(contender: Contender, load: Load) -> Measured:
    return await _fill(contender, Load(BACKLOG, load.size, load.queue))


async def _peak_memory(contender: Contender, load: Load) -> Measured:
    """MiB that this process has grown by after handling the first messages of a backlog that another one made."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = Tally(BACKLOG, load.patience)
    async with contender.consumer([load.queue], Handler(tally, wait=0.001), concurrency=CONCURRENCY):
        deadline = time.monotonic() + 60
        while tally.calls < load.count:
            if time.monotonic() > deadline:
                raise Lost(f"only {tally.calls} of the first {load.count} messages came")
            await asyncio.sleep(0.05)
    return Measured((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / KIB)


async def _import(contender: Contender, load: Load) -> Measured:
    """Milliseconds to import what a program needs, above an interpreter that imports nothing."""
    code = "import asyncio, " + ", ".join(contender.modules)
    return Measured((_python(code) - _python("import asyncio")) * 1e3)


def _python(code: str) -> float:
    """Return the seconds of CPU that a new interpreter takes to run *code*: on a busy machine steadier than time."""
    code += "; import resource; u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    command = [sys.executable, "-c", code]
    return min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3))


async def _start(contender: Contender, load: Load) -> Measured:
    """Milliseconds from connecting until a waiting message is handled."""
    await _fill(contender, load)
    tally = Tally(load.count, load.patience)
    began = time.perf_counter()
    async with contender.consumer([load.queue], Handler(tally), concurrency=CONCURRENCY):
        await tally.figure()
        took = time.perf_counter() - began
    return tally.check(Measured(took * 1e3))


async def _subscriptions(contender: Contender, load: Load) -> Measured:
    """Messages for many subscriptions of one connection, one queue each."""
    queues = [f"{load.queue}-{number}" for number in range(load.part)]
    sent = list(bodies(load.count, load.size))
    for number, queue in enumerate(queues):
        await contender.create(queue)
        async with contender.publisher(queue) as publisher:
            await publisher.many(sent[number :: load.part])
    tally = Tally(load.count, load.patience)
    began = time.perf_counter()
    async with contender.consumer(queues, Handler(tally), concurrency=1):
        ready = (time.perf_counter() - began) * 1e3
        figure = await tally.figure()
    figure = tally.check(figure)
    return Measured(figure.value, figure.cpu, figure.duplicates, {"ready_ms": ready})


_SIZES = ((100, "100B"), (KIB, "1KiB"), (64 * KIB, "64KiB"))


def _cases() -> list[Case]:
    requests, keys = frozenset({"requests"}), frozenset({"keys"})
    waits, many = frozenset({"waits"}), frozenset({"subscriptions"})
    return [
        Case("publish-one", "publish, one at a time", _publish_one),
        *(
            Case(f"publish/{t}", f"publish, pipelined, {t}", _publish_many, size=s, warm=_floor(s), most=_most(s))
            for s, t in _SIZES
        ),
        *(
            Case(f"drain/{t}", f"drain a backlog, {t}", _drain(), size=s, warm=_floor(s), most=_most(s))
            for s, t in _SIZES
        ),
        Case("drain-1ms", "drain, handlers of 1 ms", _drain(wait=0.001), needs=waits),
        Case("drain-10ms", "drain, handlers of 10 ms", _drain(wait=0.01), needs=waits, most=6_000),
        Case("end-to-end", "publish and consume at once", _end_to_end, warm=2000),
        Case("request", "requests, one at a time", _requests(1), "requests/s", needs=requests),
        Case("request-100", "requests, 100 in flight", _requests(IN_FLIGHT), "requests/s", needs=requests),
        *(Case(f"keyed/{n}", f"in order per key, {n:,} keys", _keyed, part=n, needs=keys) for n in (10, 100, 1000)),
        Case("retries", "drain, every tenth fails once", _drain(failing=10), needs=frozenset({"retries"})),
        Case("latency", "latency at half load, p50", _latency, "ms", more_is_better=False, paced=True, warm=1000),
        Case(
            "memory",
            "memory with 100,000 waiting",
            _peak_memory,
            "MiB",
            more_is_better=False,
            fixed=1000,
            size=KIB,
            needs=waits | {"processes"},
            before=_fill_backlog,
        ),
        Case("import", "import, CPU time", _import, "ms", more_is_better=False, fixed=1),
        Case("start", "start until a waiting message is handled", _start, "ms", more_is_better=False, fixed=1, warm=1),
        *(
            Case(f"subscriptions/{n}", f"{n} subscriptions", _subscriptions, fixed=3000, part=n, size=100, needs=many)
            for n in (1, 10, 100, 500)
        ),
        *(
            Case(f"backlog/{n}", f"drain a backlog of {n:,}", _drain(), fixed=n, size=100)
            for n in (1000, 10_000, 50_000)
        ),
    ]


def _floor(size: int) -> int:
    """Return so many messages that what happens once, as a new topic finding its leader, is a small part."""
    return 2000 if size <= KIB else 200


def _most(size: int) -> int:
    return 30_000 if size <= KIB else 2_000


CASES = _cases()


def find(names: str) -> list[Case]:
    """Return the cases with these comma-separated names, or of these families; all for an empty text.

    Raises:
        ValueError: There is none of that name.
    """
    if not names:
        return CASES
    found: list[Case] = []
    for name in names.split(","):
        if not (more := [case for case in CASES if name in {case.name, case.family}]):
            raise ValueError(f"no case is called {name!r}; there are: {', '.join(c.name for c in CASES)}")
        found += more
    return found
