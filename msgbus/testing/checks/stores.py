"""S. Idempotency stores: one winner per key, fenced leases, stored replies, and nothing forgotten too early."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgbus.errors import ClaimLost
from msgbus.store import Done, Granted, InProgress, Mismatch
from msgbus.testing._check import check

if TYPE_CHECKING:
    from msgbus.testing.store_case import StoreCase


@check("S1")
async def one_of_a_hundred_claims_wins(t: StoreCase) -> None:
    """Of a hundred concurrent claims for one key, from several stores, exactly one is granted."""
    stores = [t.store, await t.open(), await t.open()]
    verdicts = await asyncio.gather(*(t.ask(t.claim(), of=stores[n % 3]) for n in range(100)))

    assert sum(isinstance(v, Granted) for v in verdicts) == 1
    assert sum(isinstance(v, InProgress) for v in verdicts) == 99


@check("S2")
async def a_batch_with_one_key_has_one_winner(t: StoreCase) -> None:
    """Claims for one key inside one batch have one winner too, and other keys of the batch are granted."""
    claims = [t.claim("same"), t.claim("other"), t.claim("same"), t.claim("same")]
    verdicts = await t.store.claim(claims)

    assert [isinstance(v, Granted) for v in verdicts] == [True, True, False, False]


@check("S3")
async def a_duplicate_gets_the_reply(t: StoreCase) -> None:
    """After completion every further claim is `Done` with the stored reply, byte by byte, in every store."""
    reply = bytes(range(256))
    claim = t.claim()
    await t.ask(claim)
    assert list(await t.store.complete([t.done(claim, reply)])) == [None]

    assert await t.ask(t.claim()) == Done(reply)
    assert await t.ask(t.claim(), of=await t.open()) == Done(reply)
    assert await t.ask(claim) == Done(reply)


@check("S4")
async def replies_may_be_empty_or_absent(t: StoreCase) -> None:
    """No reply and an empty reply are two things."""
    for key, reply in (("none", None), ("empty", b"")):
        claim = t.claim(key)
        await t.ask(claim)
        await t.store.complete([t.done(claim, reply)])

        assert await t.ask(t.claim(key)) == Done(reply)


@check("S5")
async def a_released_key_can_be_claimed(t: StoreCase) -> None:
    """After a release (the handler failed) the next claim is granted at once."""
    claim = t.claim()
    await t.ask(claim)
    await t.store.release([claim])

    assert await t.ask(t.claim()) == Granted()


@check("S6")
async def a_stranger_cannot_release(t: StoreCase) -> None:
    """A release by somebody who does not own the claim changes nothing, nor does one of a finished key."""
    claim, stranger = t.claim(), t.claim()
    await t.ask(claim)
    await t.store.release([stranger, t.claim("unknown")])
    assert isinstance(await t.ask(t.claim()), InProgress)
    await t.store.complete([t.done(claim, b"r")])
    await t.store.release([claim, stranger])

    assert await t.ask(t.claim()) == Done(b"r")


@check("S7")
async def a_dead_owner_is_replaced(t: StoreCase) -> None:
    """When a lease ends without completion (its worker was killed) the key can be claimed, not earlier."""
    await t.ask(t.claim(lease=4))
    verdict = await t.ask(t.claim())
    assert isinstance(verdict, InProgress)
    assert 0 < verdict.remaining <= t.seconds(4)
    await t.pass_time(2)
    assert isinstance(await t.ask(t.claim()), InProgress)
    await t.pass_time(3)

    assert await t.ask(t.claim()) == Granted()


@check("S8")
async def a_lost_owner_cannot_complete(t: StoreCase) -> None:
    """An owner whose lease ended and whose key was taken over gets `ClaimLost`; the new owner is undisturbed."""
    lost, new = t.claim(lease=1), t.claim()
    await t.ask(lost)
    await t.pass_time(2)
    assert await t.ask(new) == Granted()
    (completed,) = await t.store.complete([t.done(lost, b"late")])
    (extended,) = await t.store.extend([lost])
    await t.store.release([lost])

    assert isinstance(completed, ClaimLost)
    assert isinstance(extended, ClaimLost)
    assert isinstance(await t.ask(t.claim()), InProgress)
    assert list(await t.store.complete([t.done(new, b"new")])) == [None]
    assert await t.ask(t.claim()) == Done(b"new")


@check("S9")
async def a_late_owner_cannot_undo_completion(t: StoreCase) -> None:
    """After the new owner has completed, the lost one's completion is refused and the new reply stays."""
    lost, new = t.claim(lease=1), t.claim()
    await t.ask(lost)
    await t.pass_time(2)
    await t.ask(new)
    await t.store.complete([t.done(new, b"new")])
    (completed,) = await t.store.complete([t.done(lost, b"late")])

    assert isinstance(completed, ClaimLost)
    assert await t.ask(t.claim()) == Done(b"new")


@check("S10")
async def an_expired_claim_nobody_took_completes(t: StoreCase) -> None:
    """An owner whose lease ended, but whose key nobody took, completes it (purged or not): the work was done."""
    for key, purged in (("there", False), ("purged", True)):
        claim = t.claim(key, lease=1)
        await t.ask(claim)
        await t.pass_time(2)
        if purged:
            await t.store.purge(1_000_000)

        assert await t.complete(claim, b"done") is None
        assert await t.ask(t.claim(key)) == Done(b"done")


@check("S11")
async def a_lease_can_be_extended(t: StoreCase) -> None:
    """An extended claim lasts for its lease from the extension on."""
    claim = t.claim(lease=4)
    await t.ask(claim)
    for _ in range(3):
        await t.pass_time(2)
        assert list(await t.store.extend([claim])) == [None]
    await t.pass_time(2)
    assert isinstance(await t.ask(t.claim()), InProgress)
    await t.pass_time(3)

    assert await t.ask(t.claim()) == Granted()


@check("S12")
async def the_same_owner_may_claim_again(t: StoreCase) -> None:
    """A claim repeated by its owner (a reply got lost on the way) is granted again."""
    claim = t.claim()

    assert await t.ask(claim) == Granted()
    assert await t.ask(claim) == Granted()
    assert isinstance(await t.ask(t.claim()), InProgress)


@check("S13")
async def another_payload_is_a_mismatch(t: StoreCase) -> None:
    """A key that comes with another payload is a `Mismatch`, in progress as well as done, and changes nothing."""
    claim = t.claim(body="one")
    await t.ask(claim)
    assert await t.ask(t.claim(body="two")) == Mismatch()
    await t.store.complete([t.done(claim, b"r")])

    assert await t.ask(t.claim(body="two")) == Mismatch()
    assert await t.ask(t.claim(body="one")) == Done(b"r")


@check("S14")
async def scopes_are_independent(t: StoreCase) -> None:
    """The same key in another scope is another key, and scope and key do not run into each other."""
    pairs = [("a", "b"), ("a", "b2"), ("a2", "b"), ("a|b", ""), ("a", "|b"), ("ab", "|"), ("A", "b"), ("a", "B")]

    for scope, key in pairs:
        assert await t.ask(t.claim(key, scope=scope)) == Granted(), f"scope {scope!r}, key {key!r}"


@check("S15")
async def any_text_can_be_a_key(t: StoreCase) -> None:
    """Keys of up to 512 characters of any text are kept apart."""
    keys = ["x" * 512, "x" * 511 + "y", "日本語 😀", "'; DROP TABLE x; --", "a\nb", "a b", "a%b", "a_b", "{a}", ":a"]

    for key in keys:
        assert await t.ask(t.claim(key)) == Granted(), repr(key[:40])
    for key in keys:
        assert isinstance(await t.ask(t.claim(key)), InProgress), repr(key[:40])


@check("S16")
async def a_done_key_is_forgotten_after_its_ttl(t: StoreCase) -> None:
    """A done key stays done for its time to live and can be claimed afterwards, with another payload too."""
    claim = t.claim()
    await t.ask(claim)
    await t.store.complete([t.done(claim, b"r", ttl=4)])
    await t.pass_time(2)
    assert await t.ask(t.claim()) == Done(b"r")
    await t.pass_time(3)

    assert await t.ask(t.claim(body="another")) == Granted()


@check("S17")
async def purging_deletes_only_what_has_expired(t: StoreCase) -> None:
    """`purge` deletes expired records, at most as many as asked, and none that is in progress or done."""
    old = [t.claim(f"old-{n}", lease=1) for n in range(5)]
    kept, done = t.claim("kept"), t.claim("done")
    await t.store.claim([*old, kept, done])
    await t.store.complete([t.done(done, b"r")])
    await t.pass_time(2)
    counts = [await t.store.purge(3) for _ in range(3)]

    assert all(0 <= count <= 3 for count in counts)
    assert isinstance(await t.ask(t.claim("kept")), InProgress)
    assert await t.ask(t.claim("done")) == Done(b"r")
    assert [await t.ask(t.claim(f"old-{n}")) for n in range(5)] == [Granted()] * 5


@check("S18")
async def a_batch_reports_each_result(t: StoreCase) -> None:
    """In batches of mixed fate each item has its own result, in order."""
    mine, theirs = t.claim("mine"), t.claim("theirs")
    await t.store.claim([mine, theirs])
    stranger = t.claim("theirs")
    verdicts = await t.store.claim([t.claim("new"), t.claim("mine"), t.claim("mine", body="other"), mine])
    extended = await t.store.extend([stranger, mine])
    completed = await t.store.complete([t.done(stranger), t.done(mine, b"r")])

    assert [type(v) for v in verdicts] == [Granted, InProgress, Mismatch, Granted]
    assert [type(e) for e in extended] == [ClaimLost, type(None)]
    assert [type(e) for e in completed] == [ClaimLost, type(None)]
    assert list(await t.store.claim([])) == []
    assert isinstance(await t.ask(t.claim("theirs")), InProgress)


@check("S19")
async def a_takeover_has_one_winner(t: StoreCase) -> None:
    """When a lease ends, of many who try to take over one wins, even against the late owner's own completion."""
    other = await t.open()
    for turn in range(10):
        owner = t.claim(f"k{turn}", lease=1)
        await t.ask(owner)
        await t.pass_time(2)
        takers = [t.claim(f"k{turn}") for _ in range(10)]
        completing = asyncio.create_task(t.complete(owner, b"late"))
        verdicts = await asyncio.gather(
            *(t.ask(taker, of=other if n % 2 else t.store) for n, taker in enumerate(takers))
        )
        completed = await completing
        granted = sum(isinstance(v, Granted) for v in verdicts)

        assert granted == (0 if completed is None else 1), f"completed: {completed!r}, granted: {granted}"


@check("S20", timeout=120)
async def cancelled_calls_leave_no_half_state(t: StoreCase) -> None:
    """A call cancelled at any point took effect or did not: the store stays usable and one owner wins the key."""
    for turn in range(25):
        claim = t.claim(f"k{turn}", lease=2)
        await _cancelled(t.store.claim([claim]), turn)
        if await t.ask(claim) != Granted():
            raise AssertionError("the owner could not repeat its cancelled claim")
        await _cancelled(t.store.complete([t.done(claim, b"r")]), turn)
        verdict = await t.ask(t.claim(f"k{turn}"))
        assert verdict == Done(b"r") or isinstance(verdict, InProgress), f"turn {turn}: {verdict}"
        assert await t.complete(claim, b"r") is None or verdict == Done(b"r")
        assert await t.ask(t.claim(f"k{turn}")) == Done(b"r")


async def _cancelled(call: object, turns: int) -> None:
    task = asyncio.ensure_future(call)  # type: ignore[call-overload]
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@check("S21")
async def records_outlive_the_store_object(t: StoreCase) -> None:
    """Records are shared: what one store object wrote another one reads, also after the first was closed."""
    first = await t.open()
    claim = t.claim()
    await t.ask(claim, of=first)
    await first.complete([t.done(claim, b"r")])
    await first.aclose()
    await first.aclose()

    assert await t.ask(t.claim()) == Done(b"r")


@check("S22", timeout=120)
async def big_batches_work(t: StoreCase) -> None:
    """Batches of five hundred keys are claimed, extended, completed and released."""
    claims = [t.claim(f"k{n}") for n in range(500)]

    assert list(await t.store.claim(claims)) == [Granted()] * 500
    assert list(await t.store.extend(claims)) == [None] * 500
    assert list(await t.store.complete([t.done(c, b"r") for c in claims[:250]])) == [None] * 250
    await t.store.release(claims[250:])
    again = await t.store.claim([t.claim(f"k{n}") for n in range(500)])
    assert list(again) == [Done(b"r")] * 250 + [Granted()] * 250
