"""Defects of other libraries' deduplication, each looked for on every store that workers can share."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from msgbus import Bus, Idempotency, Queue, Retry
from msgbus._registry import store_class
from msgbus.store import AdapterConfig, BusURL, Claim, Granted, Store
from tests.core.support import eventually, run

ROOT = Path(__file__).resolve().parents[2]
work = Queue("work", str)
LEASE = 1.2
DYING = """
import asyncio, os, signal, sys
from tests.stores.test_defects import Granted, claim, opened

async def die():
    async with opened(sys.argv[1]) as store:
        assert list(await store.claim([claim("dead")])) == [Granted()]
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(die())
"""


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def url(request: Any, tmp_path: Path, brokers: Any) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    if request.param == "redis":
        return f"{brokers('redis').url}?prefix={tmp_path.name}"
    return str(request.getfixturevalue("postgres"))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    parsed = BusURL.parse(url)
    store = store_class(parsed)(parsed, AdapterConfig())
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


def claim(owner: str, key: str = "same", lease: float = LEASE) -> Claim:
    return Claim("work|", key, owner, "print", lease)


async def idle(bus: Bus) -> bool:
    stats = await bus.stats(work)
    return (stats.ready, stats.in_flight, stats.delayed) == (0, 0, 0)


def test_a_key_is_not_marked_before_its_handler_succeeded(url: str) -> None:
    """The handler fails twice and the message is not lost: neither retry is taken for a duplicate."""
    bus, calls = Bus("memory://", idempotency_url=url), []

    @bus.on(work, idempotent=True, retry=Retry(attempts=3, base=0.01))
    async def handle(payload: str) -> None:
        calls.append(payload)
        if len(calls) < 3:
            raise RuntimeError("not yet")

    async def main() -> None:
        async with bus:
            await bus.start()
            await bus.send(work, "x", id="same")
            await eventually(lambda: len(calls) == 3)
            await bus.send(work, "x", id="same")
            await eventually(lambda: idle(bus), within=30)

    run(main(), within=60)

    assert len(calls) == 3


def test_a_live_claim_is_not_taken_for_an_orphan(url: str) -> None:
    """A handler that runs three leases long keeps its claim: the duplicate waits for it and is not run."""
    bus, calls = Bus("memory://", idempotency_url=url), []
    lease = 3.0  # kept although the machine stands still for a while

    @bus.on(work, idempotent=Idempotency(lease=lease), concurrency=4)
    async def handle(payload: str) -> None:
        calls.append(payload)
        await asyncio.sleep(3 * lease)

    async def main() -> None:
        async with bus:
            await bus.start()
            for _ in range(3):
                await bus.send(work, "x", id="same")
            await asyncio.sleep(2 * lease)
            await eventually(lambda: idle(bus), within=30)

    run(main(), within=60)

    assert calls == ["x"]


def test_a_killed_worker_s_claim_ends(url: str) -> None:
    """SIGKILL leaves a claim behind; it ends with its lease, and not before."""
    done = subprocess.run([sys.executable, "-c", DYING, url], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr

    async def main() -> None:
        async with opened(url) as store:
            loop, verdict = asyncio.get_running_loop(), None
            end = loop.time() + 10
            while not isinstance(verdict, Granted):
                assert loop.time() < end
                (verdict,) = await store.claim([claim("heir", lease=60)])
                await asyncio.sleep(0.02)

    run(main(), within=60)


async def _running(url: str, then: Callable[[Store, Claim], Awaitable[None]]) -> tuple[list[str], list[str]]:
    """Let *then* do something to the claim of a running handler; return who began and who finished."""
    bus, began, finished = Bus("memory://", idempotency_url=url), [], []
    proceed = asyncio.Event()

    @bus.on(work, idempotent=Idempotency(lease=LEASE), concurrency=1, retry=Retry(attempts=1))
    async def handle(payload: str) -> None:
        began.append(payload)
        if len(began) == 1:
            await proceed.wait()
        finished.append(payload)

    async with bus, opened(url) as store:
        await bus.start()
        await bus.send(work, "x", id="same")
        await eventually(lambda: began)
        assert bus._session is not None
        calls = bus._session.guards.calls
        assert calls is not None
        guarded = calls.store
        extend = guarded.extend
        seen: list[Claim] = []

        async def spying(claims: Any) -> Any:
            seen.extend(claims)
            return await extend(claims)

        guarded.extend = spying  # type: ignore[method-assign]
        await eventually(lambda: seen)
        await then(store, seen[0])
        await asyncio.sleep(2 * LEASE)
        proceed.set()
        await eventually(lambda: idle(bus), within=20)
        assert (await bus.stats(work)).dead == 0
    return began, finished


def test_who_loses_a_claim_is_told(url: str) -> None:
    """A handler whose key is another worker's by now is cancelled; its message waits for the other one."""

    async def take(store: Store, mine: Claim) -> None:
        await store.release([mine])
        theirs = Claim(mine.scope, mine.key, "another", mine.fingerprint, 3 * LEASE)
        assert list(await store.claim([theirs])) == [Granted()]

    began, finished = run(_running(url, take), within=40)

    assert began == ["x", "x"]
    assert finished == ["x"]


def test_a_claim_that_nobody_took_is_had_again(url: str) -> None:
    """A lease that ended while its handler ran (the store was away) is renewed all the same: nobody was faster."""

    async def forget(store: Store, mine: Claim) -> None:
        await store.release([mine])

    began, finished = run(_running(url, forget), within=40)

    assert (began, finished) == (["x"], ["x"])
