"""D. What fails is tried again: as often and as late as the policy says, and seen by nobody else."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from msgbus import Delivery, Queue, Reject, Retry, RetryAfter, Topic
from msgbus.testing._check import check

if TYPE_CHECKING:
    from msgbus.testing.case import Case

WORK = Queue("work", str)


def quick(t: Case, attempts: int = 3, **options: Any) -> Retry:
    """Return a retry policy that waits one tick between attempts."""
    return Retry(attempts=attempts, base=t.tick, factor=1.0, jitter=False, **options)


@check("D1", needs="max_delay")
async def attempts_are_numbered(t: Case) -> None:
    """A handler that fails twice sees attempts 1, 2 and 3 of the same message, and then it is done."""
    seen: list[tuple[int, str]] = []
    bus = t.bus()

    @bus.on(WORK, retry=quick(t, 5))
    async def handle(_: str, delivery: Delivery[str]) -> None:
        seen.append((delivery.attempt, delivery.message.id))
        if delivery.attempt < 3:
            raise RuntimeError("not yet")

    async with bus:
        await bus.start()
        await bus.send(WORK, "x", id="the-id")
        await t.eventually(lambda: len(seen) >= 3)
        await t.pause(3)
        dead = await (await bus.dead_letters(WORK)).peek()

    assert seen == [(1, "the-id"), (2, "the-id"), (3, "the-id")]
    assert dead == []


@check("D2", needs="max_delay")
async def the_maximum_is_exact(t: Case) -> None:
    """What keeps failing is tried exactly as often as the policy says, then dead-lettered."""
    calls: dict[str, int] = {}
    bus = t.bus()

    @bus.on(WORK, retry=quick(t, 4))
    async def handle(payload: str) -> None:
        calls[payload] = calls.get(payload, 0) + 1
        raise RuntimeError("never")

    async with bus:
        await bus.start()
        await bus.send_many(WORK, [f"m{n}" for n in range(10)])
        box = await bus.dead_letters(WORK)

        async def all_dead() -> bool:
            return len(await box.peek()) >= 10

        await t.eventually(all_dead)
        await t.pause(3)
        reports = [dead.report for dead in await box.peek()]

    assert calls == {f"m{n}": 4 for n in range(10)}
    assert [(r.reason, r.attempts) for r in reports] == [("failed", 4)] * 10


@check("D3", needs="max_delay")
async def no_retry_is_early(t: Case) -> None:
    """Between two attempts at least the policy's delay passes; how much more is reported."""
    moments: dict[str, list[float]] = {}
    bus = t.bus()

    @bus.on(WORK, retry=quick(t, 4))
    async def handle(payload: str) -> None:
        moments.setdefault(payload, []).append(time.monotonic())
        raise RuntimeError("never")

    async with bus:
        await bus.start()
        await bus.send_many(WORK, [f"m{n}" for n in range(5)])
        await t.eventually(lambda: sum(map(len, moments.values())) >= 20)

    gaps = [b - a for times in moments.values() for a, b in pairwise(times)]
    assert min(gaps) >= t.tick, f"a retry came {t.tick - min(gaps):.3f} s early"
    late = sorted(round((gap - t.tick) * 1000) for gap in gaps)
    t.note(lateness_ms={"min": late[0], "median": late[len(late) // 2], "max": late[-1]})


@check("D4", needs="max_delay")
async def others_flow_meanwhile(t: Case) -> None:
    """While one message waits for its next attempt, others are handled."""
    seen: list[str] = []
    bus = t.bus()

    @bus.on(WORK, concurrency=1, prefetch=2, retry=Retry(attempts=2, base=20 * t.tick, jitter=False))
    async def handle(payload: str, delivery: Delivery[str]) -> None:
        seen.append(payload)
        if payload == "bad" and delivery.attempt == 1:
            raise RuntimeError("once")

    async with bus:
        await bus.start()
        await bus.send(WORK, "bad")
        await t.eventually(lambda: seen)
        started = time.monotonic()
        await bus.send_many(WORK, [f"good{n}" for n in range(10)])
        await t.eventually(lambda: len(set(seen)) == 11)
        took = time.monotonic() - started

    assert took < 15 * t.tick + t.harness.patience, f"ten messages took {took:.1f} s behind a failed one"


@check("D5", needs="max_delay")
async def some_failures_are_final(t: Case) -> None:
    """`Reject` and the policy's fatal exceptions dead-letter at the first attempt."""
    calls: list[str] = []
    bus = t.bus()

    @bus.on(WORK, retry=quick(t, 5, fatal=(KeyError,)))
    async def handle(payload: str) -> None:
        calls.append(payload)
        raise Reject("not for us") if payload == "rejected" else KeyError("always")

    async with bus:
        await bus.start()
        await bus.send(WORK, "rejected")
        await bus.send(WORK, "fatal")
        box = await bus.dead_letters(WORK)

        async def both_dead() -> bool:
            return len(await box.peek()) == 2

        await t.eventually(both_dead)
        await t.pause(2)
        reports = {dead.message.body: dead.report for dead in await box.peek()}

    assert sorted(calls) == ["fatal", "rejected"]
    assert (reports[b"rejected"].reason, reports[b"rejected"].detail) == ("rejected", "not for us")
    assert (reports[b"fatal"].reason, reports[b"fatal"].exception) == ("fatal", "KeyError")


@check("D6", needs="max_delay")
async def a_handler_may_say_when(t: Case) -> None:
    """`RetryAfter` takes the place of the policy's delay, is never early, and counts as an attempt."""
    seen: list[tuple[int, float]] = []
    bus = t.bus()

    @bus.on(WORK, retry=Retry(attempts=3, base=1000.0, jitter=False))
    async def handle(_: str, delivery: Delivery[str]) -> None:
        seen.append((delivery.attempt, time.monotonic()))
        if delivery.attempt < 3:
            raise RetryAfter(3 * t.tick)

    async with bus:
        await bus.start()
        await bus.send(WORK, "x")
        await t.eventually(lambda: len(seen) == 3)

    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    assert min(seen[1][1] - seen[0][1], seen[2][1] - seen[1][1]) >= 3 * t.tick


@check("D7", needs="max_delay")
async def attempts_survive_a_restart(t: Case) -> None:
    """The count of attempts goes on when another process handles the retry."""
    seen: list[int] = []
    for _ in range(3):
        bus = t.bus()

        @bus.on(WORK, retry=quick(t, 5))
        async def handle(_: str, delivery: Delivery[str]) -> None:
            seen.append(delivery.attempt)
            raise RuntimeError("again")

        async with bus:
            if not seen:
                await bus.send(WORK, "x")
            before = len(seen)
            await bus.start()
            await t.eventually(lambda before=before: len(seen) > before)  # type: ignore[misc]

    assert seen == list(range(1, len(seen) + 1))


@check("D8", needs="max_delay")
async def shutdown_burns_no_attempt(t: Case) -> None:
    """A message whose handler is cancelled by a shutdown, or that no handler saw yet, is still at attempt 1."""
    started, seen = asyncio.Event(), {}
    first, second = t.bus(), t.bus()

    @first.on(WORK, concurrency=1, prefetch=10, retry=quick(t, 2))
    async def hang(_: str) -> None:
        started.set()
        await asyncio.sleep(1000)

    @second.on(WORK, retry=quick(t, 2))
    async def handle(payload: str, delivery: Delivery[str]) -> None:
        seen[payload] = delivery.attempt

    async with first:
        await first.send_many(WORK, ["a", "b", "c"])
        await first.start()
        await started.wait()
        await first.drain(timeout=0)
    async with second:
        await second.start()
        await t.eventually(lambda: len(seen) == 3)

    if t.capabilities.delivery_count == "approximate":
        t.note(attempts=seen)  # such a broker also counts what was given back; the core allows for it
    else:
        assert seen == {"a": 1, "b": 1, "c": 1}


@check("D9", needs="groups max_delay")
async def a_retry_is_its_groups_own(t: Case) -> None:
    """A retry is handled by the group that failed; the other groups do not see it."""
    topic = Topic("news", str)
    failing: list[int] = []
    fine: list[int] = []
    bus = t.bus()

    @bus.on(topic, group="failing", retry=quick(t, 3))
    async def fail(_: str, delivery: Delivery[str]) -> None:
        failing.append(delivery.attempt)
        raise RuntimeError("always")

    @bus.on(topic, group="fine", retry=quick(t, 3))
    async def succeed(_: str, delivery: Delivery[str]) -> None:
        fine.append(delivery.attempt)

    async with bus:
        await bus.start()
        await bus.publish(topic, "x")
        await t.eventually(lambda: len(failing) >= 3)
        await t.pause(3)

    assert (failing, fine) == ([1, 2, 3], [1])


@check("D10", needs="max_delay")
async def handlers_cannot_change_the_retry(t: Case) -> None:
    """What a handler does to its payload or headers does not show in the next attempt."""
    queue = Queue("changes", dict)
    seen: list[tuple[Any, Any]] = []
    bus = t.bus()

    @bus.on(queue, retry=quick(t, 2))
    async def handle(payload: dict[str, Any], delivery: Delivery[Any]) -> None:
        seen.append((dict(payload), dict(delivery.message.headers)))
        payload["changed"] = True
        if len(seen) == 1:
            delivery.message.headers["changed"] = "yes"  # type: ignore[index]

    async with bus:
        await bus.start()
        await bus.send(queue, {"a": 1}, headers={"h": "v"})
        await t.eventually(lambda: len(seen) == 2)

    assert seen == [({"a": 1}, {"h": "v"})] * 2


@check("D11", needs="max_delay")
async def an_overlong_handler_is_a_failed_attempt(t: Case) -> None:
    """A handler that takes longer than its timeout is cancelled, and its message retried."""
    seen: list[int] = []
    cancelled: list[int] = []
    bus = t.bus()

    @bus.on(WORK, retry=quick(t, 2), timeout=2 * t.tick)
    async def handle(_: str, delivery: Delivery[str]) -> None:
        seen.append(delivery.attempt)
        if delivery.attempt == 1:
            try:
                await asyncio.sleep(1000)
            finally:
                cancelled.append(1)

    async with bus:
        await bus.start()
        await bus.send(WORK, "x")
        await t.eventually(lambda: len(seen) == 2)

    assert (seen, cancelled) == ([1, 2], [1])
