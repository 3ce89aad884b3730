"""The idempotency store on a file of its own, and on the bus's."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest

from msgbus.adapter import AdapterConfig, BusURL, Source
from msgbus.errors import ClaimLost, ClosedError, StoreUnavailable
from msgbus.store import Claim, Completion, Done, Granted, InProgress, Mismatch
from msgbus_sqlite import SQLiteStore


def claim(key: str = "k", owner: str = "me", fingerprint: str = "f", lease: float = 10, scope: str = "s") -> Claim:
    return Claim(scope, key, owner, fingerprint, lease)


def with_store(test, kit, query: str = ""):
    async def body():
        clock = kit.Clock()
        store = SQLiteStore(BusURL.parse(f"{kit.url}{query}"), AdapterConfig(clock=clock))
        await store.open()
        try:
            await test(store, clock)
        finally:
            await store.aclose()

    kit.run(body())


def test_a_claim_lives_through_its_states(kit):
    async def test(store, clock):
        mine, yours = claim(), claim(owner="you")
        assert [Granted(), InProgress(10)] == await store.claim([mine, yours])
        await clock.advance(4)
        assert [InProgress(6), Granted()] == await store.claim([yours, mine])
        await clock.advance(9)
        assert await store.extend([mine]) == [None]
        await clock.advance(9)
        assert [InProgress(1), Mismatch()] == await store.claim([yours, claim(owner="you", fingerprint="g")])
        assert await store.complete([Completion(mine, b"reply", 100)]) == [None]
        assert [Done(b"reply")] * 2 == await store.claim([yours, mine])
        assert [Mismatch()] == await store.claim([claim(fingerprint="g")])
        await clock.advance(100)
        assert [Granted()] == await store.claim([yours])

    with_store(test, kit)


def test_a_lost_claim_harms_nobody(kit):
    async def test(store, clock):
        mine, yours = claim(), claim(owner="you")
        await store.claim([mine])
        await clock.advance(10)
        assert [Granted()] == await store.claim([yours])
        (extended,) = await store.extend([mine])
        (completed,) = await store.complete([Completion(mine, b"old", 100)])
        await store.release([mine])
        assert isinstance(extended, ClaimLost)
        assert isinstance(completed, ClaimLost)
        assert [InProgress(10)] == await store.claim([mine])
        assert await store.complete([Completion(yours, None, 100)]) == [None]
        assert [Done(None)] == await store.claim([mine])

    with_store(test, kit)


def test_a_claim_that_nobody_else_took_is_completed_after_its_lease(kit):
    async def test(store, clock):
        await store.claim([claim()])
        await clock.advance(1000)
        assert await store.complete([Completion(claim(), b"", 5)]) == [None]
        assert [Done(b"")] == await store.claim([claim(owner="you")])

    with_store(test, kit)


def test_released_keys_and_other_scopes_are_free(kit):
    async def test(store, clock):
        await store.claim([claim()])
        assert [Granted()] == await store.claim([claim(owner="you", scope="other")])
        await store.release([claim()])
        assert [Granted()] == await store.claim([claim(owner="you")])

    with_store(test, kit)


def test_items_of_a_batch_are_independent(kit):
    async def test(store, clock):
        await store.claim([claim(str(n)) for n in range(10)])
        errors = await store.complete([Completion(claim(str(n), "me" if n % 2 else "you"), None, 9) for n in range(10)])
        assert [bool(n % 2) for n in range(10)] == [error is None for error in errors]

    with_store(test, kit)


def test_of_a_hundred_concurrent_claims_one_wins(kit):
    async def test(store, clock):
        verdicts = await asyncio.gather(*(store.claim([claim(owner=str(n))]) for n in range(100)))
        assert [sum(isinstance(v[0], kind) for v in verdicts) for kind in (Granted, InProgress)] == [1, 99]

    with_store(test, kit)


def test_purge_deletes_expired_records_and_no_more_than_asked(kit):
    async def test(store, clock):
        await store.claim([claim(str(n)) for n in range(10)])
        await store.complete([Completion(claim("0"), None, 1000)])
        await clock.advance(10)
        assert [await store.purge(4) for _ in range(4)] == [4, 4, 1, 0]
        assert [Done(None)] == await store.claim([claim("0")])

    with_store(test, kit)


def test_a_locked_file_is_unavailable(kit):
    async def test(store, clock):
        holder = sqlite3.connect(kit.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=r"bus\.db.*locked"):
            await store.claim([claim()])
        holder.close()
        assert [Granted()] == await store.claim([claim()])

    with_store(test, kit, "?busy_timeout=0.1")


def test_it_may_be_the_bus_s_own_file(kit):
    async def test(store, clock):
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await asyncio.gather(
                *(store.claim([claim(str(n))]) for n in range(20)),
                *(kit.publish(adapter, kit.message(queue, str(n))) for n in range(20)),
            )
            assert (await adapter.stats(Source(queue))).ready == 20

    with_store(test, kit)


def test_a_closed_store_says_so_and_leaves_no_thread(kit):
    before = threading.active_count()

    async def body():
        store = SQLiteStore(kit.url, AdapterConfig())
        with pytest.raises(ClosedError, match="not open"):
            await store.claim([claim()])
        await store.open()
        await asyncio.gather(store.aclose(), store.aclose())
        with pytest.raises(ClosedError, match="closed"):
            await store.claim([claim()])

    kit.run(body())
    assert before == threading.active_count()
