"""Load and soak: ``python -m scripts.soak BROKER [CASE,CASE…] [--scale 0.1]``. Each case prints one line.

Every case runs in a process of its own, so that its peak of memory is its own, and fails when something is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from msgbus import Bus, Queue
from msgbus.errors import MessageTooLarge, PublishFailed
from msgbus.testing.chaos import Step, Target, run_chaos
from scripts import report
from scripts.chaos import TARGETS, target

__all__ = ["main"]

_PATIENCE = 600.0
_GROWTH = 64
"""Megabytes by which a process may grow between the first fifth of a case and its end."""


class Soak:
    """One case's means.

    Args:
        aim: The broker.
        folder: For the case's files.
        scale: Multiplies the numbers.
    """

    def __init__(self, aim: Target, folder: Path, scale: float) -> None:
        self.aim = aim
        self.folder = folder
        self._scale = scale
        self._namespace = f"soak-{random.randrange(10**9)}"
        self._first = 0.0

    def many(self, count: int) -> int:
        """Return *count* at this scale."""
        return max(1, round(count * self._scale))

    def bus(self, **options: Any) -> Bus:
        """Return a bus on the broker."""
        return Bus(self.aim.url, namespace=self._namespace, publish_timeout=60, drain_timeout=30, **options)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {_PATIENCE:g} s: {what}")
            await asyncio.sleep(0.05)

    def warm(self) -> None:
        """Note the memory now; what comes on top is growth."""
        self._first = self._first or _memory()

    def check_memory(self) -> str:
        """Return the growth since `warm`; fail if it is more than a bounded window explains."""
        growth = _memory() - self._first
        assert growth < _GROWTH, f"the process grew by {growth:.0f} MB"
        return f"{growth:+.0f} MB"


def _memory() -> float:
    """Return the megabytes this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def overload(soak: Soak) -> dict[str, Any]:
    """Publish as fast as the broker takes it to handlers that are slow; hold no more than the window."""
    work, handled, published = Queue("work", bytes), 0, 0
    bus = soak.bus()

    @bus.on(work, concurrency=16)
    async def handle(_: bytes) -> None:
        nonlocal handled
        handled += 1
        await asyncio.sleep(0.05)

    end = time.monotonic() + max(5.0, soak.many(60))
    body = b"x" * 1000
    async with bus:
        await bus.start()
        while (left := end - time.monotonic()) > 0:
            published += await bus.send_many(work, [body] * 2000)
            if left < 0.8 * soak.many(60):
                soak.warm()
        growth = soak.check_memory()
        await soak.until(lambda: handled > 0, "something is handled")
        await bus.drain()
        waiting = (await bus.stats(work)).ready
    return {"published": published, "handled": handled, "waiting": waiting, "growth": growth}


async def million(soak: Soak) -> dict[str, Any]:
    """A million small messages through the broker once: none lost, duplicates counted."""
    count = soak.many(1_000_000)
    work, seen, twice = Queue("work", bytes), bytearray(count), 0
    bus = soak.bus()

    @bus.on(work, concurrency=64, prefetch=5000)
    async def handle(body: bytes) -> None:
        nonlocal twice
        twice += seen[int(body)]
        seen[int(body)] = 1

    started = time.monotonic()
    async with bus:
        await bus.start()
        await bus.send_many(work, (b"%d" % number for number in range(count // 5)))
        soak.warm()
        await bus.send_many(work, (b"%d" % number for number in range(count // 5, count)))
        sent = time.monotonic() - started
        await soak.until(lambda: sum(seen) == count, f"{count} messages handled")
    took = time.monotonic() - started
    return {
        "messages": count,
        "duplicates": twice,
        "published/s": round(count / sent),
        "through/s": round(count / took),
        "growth": soak.check_memory(),
    }


async def keys(soak: Soak) -> dict[str, Any]:
    """Ten thousand keys with five messages each, in order per key."""
    count = soak.many(10_000)
    work = Queue("keyed", str, key=lambda text: text.partition(":")[0])
    last: dict[str, int] = {}
    wrong = handled = 0
    bus = soak.bus()

    @bus.on(work, concurrency=32, prefetch=1000)
    async def handle(text: str) -> None:
        nonlocal wrong, handled
        key, _, number = text.partition(":")
        wrong += int(number) != last.get(key, -1) + 1
        last[key] = int(number)
        handled += 1

    started = time.monotonic()
    async with bus:
        await bus.start()
        for number in range(5):
            await bus.send_many(work, [f"{key}:{number}" for key in range(count)])
            soak.warm()
        await soak.until(lambda: handled >= 5 * count, "all handled")
    assert not wrong, f"{wrong} messages out of order or twice"
    return {"keys": count, "messages/s": round(handled / (time.monotonic() - started)), "growth": soak.check_memory()}


async def subscriptions(soak: Soak) -> dict[str, Any]:
    """Two hundred subscriptions in one process, twenty messages each."""
    count = soak.many(200)
    seen: dict[str, set[int]] = {}
    queues: list[Queue[int]] = []
    bus = soak.bus(concurrency=2)

    def consume(queue: Queue[int]) -> None:
        numbers = seen[queue.name] = set()

        @bus.on(queue)
        async def handle(number: int) -> None:
            numbers.add(number)

    for index in range(count):
        queues.append(Queue(f"queue.n{index}", int))
        consume(queues[-1])
    started = time.monotonic()
    async with bus:
        await bus.start()
        opened = time.monotonic() - started
        await asyncio.gather(*(bus.send_many(queue, range(20)) for queue in queues))
        await soak.until(lambda: all(len(numbers) == 20 for numbers in seen.values()), "each has its twenty")
        took = time.monotonic() - started - opened
        closing = time.monotonic()
    return {
        "subscriptions": count,
        "open": f"{opened:.1f} s",
        "messages": f"{took:.1f} s",
        "close": f"{time.monotonic() - closing:.1f} s",
    }


async def big(soak: Soak) -> dict[str, Any]:
    """Bodies at the adapter's limit, and one byte more."""
    work, seen = Queue("work", bytes), 0
    bus = soak.bus()

    @bus.on(work, concurrency=2, prefetch=2)
    async def handle(body: bytes) -> None:
        nonlocal seen
        assert body == b"x" * len(body)
        seen += 1

    async with bus:
        limit = next(iter(bus._open._connections)).adapter.capabilities.max_body  # noqa: SLF001
        await bus.start()
        count = max(3, min(20, 2**28 // limit))
        for _ in range(count):
            await bus.send(work, b"x" * limit)
        try:
            await bus.send(work, b"x" * (limit + 1))
        except MessageTooLarge:
            pass
        else:
            raise AssertionError("one byte more than the limit was taken")
        await soak.until(lambda: seen >= count, "all handled")
    return {"bodies": count, "bytes": limit}


async def garbage(soak: Soak) -> dict[str, Any]:
    """A flood of undecodable messages: all are dead-lettered, and the good ones among them are handled."""
    count = soak.many(20_000)
    work, raw, seen = Queue("work", int), Queue("work", bytes), set[int]()
    bus = soak.bus()

    @bus.on(work)
    async def handle(number: int) -> None:
        seen.add(number)

    async with bus:
        await bus.start()
        for number in range(20):
            await bus.send_many(raw, [b"\xff\x00 no number"] * (count // 20))
            await bus.send(work, number)
            soak.warm()
        dead = 0
        deadline = time.monotonic() + _PATIENCE
        while dead < count // 20 * 20 or len(seen) < 20:
            assert time.monotonic() < deadline, f"{dead} dead, {len(seen)} handled"
            await asyncio.sleep(0.2)
            stats = await bus.stats(work)
            dead = stats.dead if stats.dead is not None else count
    return {"garbage": count, "dead": dead, "good": len(seen), "growth": soak.check_memory()}


async def shutdown(soak: Soak) -> dict[str, Any]:
    """SIGTERM under load a hundred times over: nothing lost, nothing handled twice."""
    count = soak.many(100)
    steps = [Step(1.0 + 0.8 * number, "term", 0.0, (number % 7) / 7) for number in range(count)]
    seconds = 2.0 + 0.8 * count
    outcome = await run_chaos(soak.aim, soak.folder, seed=1, seconds=seconds, workers=3, rate=100, steps=steps)
    outcome.raise_if_broken()
    counts = outcome.findings.counts
    assert not counts.duplicates, f"{counts.duplicates} messages were handled twice; see {outcome.folder}"
    return {"SIGTERM": counts.faults, "handled": counts.handled, "duplicates": counts.duplicates, "lost": counts.lost}


CASES: dict[str, Callable[[Soak], Awaitable[dict[str, Any]]]] = {
    case.__name__: case for case in (overload, million, keys, subscriptions, big, garbage, shutdown)
}


async def _run(case: str, soak: Soak) -> dict[str, Any]:
    try:
        return await CASES[case](soak)
    except PublishFailed as exc:
        raise AssertionError(f"{case}: {exc}") from exc


def _one(case: str, options: argparse.Namespace) -> int:
    """Run one case in this process and print what it found as JSON."""
    with tempfile.TemporaryDirectory(prefix="msgbus-soak-") as folder, target(options.broker, Path(folder)) as aim:
        found = asyncio.run(_run(case, Soak(aim, Path(folder), options.scale)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "peak RSS": f"{peak:.0f} MB"}))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases asked for; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__)
    parser.add_argument("broker", choices=TARGETS)
    parser.add_argument(
        "cases", nargs="?", default=",".join(CASES), help=f"comma-separated; default: {', '.join(CASES)}"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all numbers")
    parser.add_argument("--report", type=Path, default=None, help="a page whose table keeps each case's last run")
    parser.add_argument("--here", action="store_true", help="run one case in this process")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases.split(",")) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    if options.here:
        return _one(options.cases, options)
    failed = 0
    for case in options.cases.split(","):
        command = [sys.executable, "-m", "scripts.soak", options.broker, case, "--here", "--scale", str(options.scale)]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        took = time.monotonic() - started
        verdict = done.stdout.strip() or f"FAILED: {done.stderr.strip()[-3000:]}"
        print(f"{options.broker} {case} ({took:.0f} s): {verdict}", flush=True)
        failed += done.returncode != 0
        if options.report is not None:
            report.keep(options.report, "soak", _table(options.broker, case, options.scale, took, verdict), key=2)
    return 1 if failed else 0


def _table(broker: str, case: str, scale: float, took: float, verdict: str) -> str:
    if verdict.startswith("{"):
        verdict = ", ".join(f"{name} {value}" for name, value in json.loads(verdict).items())
    verdict = verdict.splitlines()[-1].replace("|", "/")
    row = f"| {broker} | {case} | {scale:g} | {took:.0f} s | {verdict} |"
    return f"| broker | case | scale | took | figures |\n|-|-|-|-|-|\n{row}"


if __name__ == "__main__":
    sys.exit(main())
