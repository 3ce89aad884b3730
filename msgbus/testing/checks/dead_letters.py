"""E. What cannot be handled is kept, whole and with its reason, and can be handled later."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from msgbus import Delivery, Message, Queue, Reject, Retry, Topic
from msgbus._message import parse_time
from msgbus.adapter import DEAD, DeadLetter, Source, Topology
from msgbus.errors import SettleError
from msgbus.testing._check import check
from msgbus.testing.checks.round_trip import complete, numbered
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from msgbus import Bus, DeadLetterBox
    from msgbus.testing.case import Case


@dataclass
class _A:
    n: int = 0


@dataclass
class _B:
    n: int = 0


WORK = Queue("work", str)
ONCE = Retry(attempts=1)


async def wait_dead(t: Case, box: DeadLetterBox, count: int) -> list[Any]:
    """Return the dead letters of *box* once there are *count*."""

    async def enough() -> Any:
        found = await box.peek(limit=1_000)
        return (found,) if (len(found) >= count if count else not found) else None

    (found,) = await t.eventually(enough, what=f"{count} dead letters")
    assert len(found) == count
    return list(found)


@check("E1")
async def a_dead_letter_is_whole(t: Case) -> None:
    """A dead letter has the message's body byte by byte and all its headers, id and key included."""
    queue = Queue("raw", bytes)
    body = bytes(range(256))
    handled: list[Message] = []
    bus = t.bus()

    @bus.on(queue, retry=ONCE)
    async def handle(_: bytes, message: Message) -> None:
        handled.append(message)
        raise RuntimeError("no")

    async with bus:
        await bus.start()
        await bus.send(queue, body, headers={"h": "ünï"}, id="the-id", correlation_id="c", key="k")
        (dead,) = await wait_dead(t, await bus.dead_letters(queue), 1)

    assert dead.message == handled[0]
    assert dead.message.body == body
    assert (dead.message.id, dict(dead.message.headers), dead.message.key) == ("the-id", {"h": "ünï"}, "k")


@check("E2", needs="groups max_delay")
async def a_dead_letter_says_why(t: Case) -> None:
    """A dead letter tells reason, exception, text, traceback, attempts, first and last time, channel and group."""
    topic = Topic("orders.placed", str)
    bus = t.bus()

    @bus.on(topic, group="billing", retry=Retry(attempts=2, base=t.tick, jitter=False))
    async def handle(_: str) -> None:
        raise ZeroDivisionError("the cause")

    before = datetime.now(UTC) - timedelta(seconds=1)
    async with bus:
        await bus.start()
        await bus.publish(topic, "x")
        (dead,) = await wait_dead(t, await bus.dead_letters(topic, group="billing"), 1)
    report, after = dead.report, datetime.now(UTC) + timedelta(seconds=1)
    first, last = parse_time(report.first), parse_time(report.last)

    assert (report.reason, report.exception, report.detail) == ("failed", "ZeroDivisionError", "the cause")
    assert "ZeroDivisionError: the cause" in report.traceback
    assert (report.attempts, report.source, report.group) == (2, "orders.placed", "billing")
    assert report.host
    assert first is not None
    assert last is not None
    assert before <= first <= last <= after
    assert (last - first).total_seconds() >= 0.9 * t.tick


@check("E3")
async def garbage_is_kept_raw(t: Case) -> None:
    """What cannot be decoded is dead-lettered raw at once, and the messages behind it are handled."""
    queue = Queue("json", dict)
    seen: list[Any] = []
    bus = t.bus()

    @bus.on(queue, concurrency=1)
    async def handle(payload: dict[str, Any]) -> None:
        seen.append(payload)

    async with bus:
        await t.send(queue.address(t.prefix), b"{\xff not json", headers={"h": "v"})
        await bus.send(queue, {"n": 1})
        await bus.start()
        (dead,) = await wait_dead(t, await bus.dead_letters(queue), 1)
        await t.eventually(lambda: seen)

    assert seen == [{"n": 1}]
    assert (dead.message.body, dict(dead.message.headers)) == (b"{\xff not json", {"h": "v"})
    assert dead.report.reason == "undecodable"


@check("E4")
async def the_expired_is_not_handled(t: Case) -> None:
    """A message whose time is over is dead-lettered as expired, not handled; one whose time is not is handled."""
    seen: list[str] = []
    bus = t.bus()

    @bus.on(WORK)
    async def handle(payload: str) -> None:
        seen.append(payload)

    async with bus:
        await bus.send(WORK, "late", expires=t.tick)
        await bus.send(WORK, "in time", expires=3600)
        await t.pause(3)
        await bus.start()
        await t.eventually(lambda: seen)
        if not t.capabilities.ttl:  # a broker that expires messages itself drops them
            (dead,) = await wait_dead(t, await bus.dead_letters(WORK), 1)
            assert (dead.message.body, dead.report.reason) == (b"late", "expired")

    assert seen == ["in time"]


@check("E5")
async def listing_consumes_nothing(t: Case) -> None:
    """Dead letters can be listed page by page, and shown, as often as one likes; listing takes none away."""
    async with t.bus() as bus:
        box = await _bury(t, bus, [f"m{n}" for n in range(25)])
        everything = [dead.message.id for dead in await wait_dead(t, box, 25)]
        pages = [[dead.message.id for dead in await box.peek(limit=10, skip=skip)] for skip in (0, 10, 20)]
        shown = await box.show("id-m7")
        missing = await box.show("no-such-id")

    assert len(set(everything)) == 25
    assert [len(page) for page in pages] == [10, 10, 5]
    if t.capabilities.browse:
        assert [*pages[0], *pages[1], *pages[2]] == everything
    assert shown is not None
    assert shown.message.body == b"m7"
    assert missing is None


async def _bury(t: Case, bus: Bus, payloads: list[str]) -> DeadLetterBox:
    """Dead-letter one message per payload, without any handler."""
    source = Source(WORK.address(t.prefix))
    await t.adapter.declare(Topology((), (source,)))
    for payload in payloads:
        await bus.send(WORK, payload, id=f"id-{payload}")
    tap = await t.tap(source)
    await tap.bury(*await tap.take(len(payloads)))
    await tap.aclose()
    return await bus.dead_letters(WORK)


@check("E6")
async def one_some_or_all_can_be_replayed(t: Case) -> None:
    """Replaying one, some or all dead letters hands them to the handler at attempt 1 and takes them out of the box."""
    seen: list[tuple[str, int]] = []
    bus = t.bus()

    @bus.on(WORK, retry=ONCE)
    async def handle(payload: str, delivery: Delivery[str]) -> None:
        seen.append((payload, delivery.attempt))

    async with bus:
        box = await _bury(t, bus, list("abcde"))
        await bus.start()
        assert await box.replay(ids=["id-c"]) == 1
        await t.eventually(lambda: len(seen) == 1)
        assert seen == [("c", 1)]
        assert await box.replay(limit=2) == 2
        await t.eventually(lambda: len(seen) == 3)
        await wait_dead(t, box, 2)
        assert await box.replay() == 2
        await t.eventually(lambda: len(seen) == 5)
        await wait_dead(t, box, 0)

    assert sorted(seen) == [(payload, 1) for payload in "abcde"]


@check("E7", needs="groups")
async def a_replay_reaches_its_group_only(t: Case) -> None:
    """A replayed message is handled by the group whose dead letter it was, and by no other."""
    topic = Topic("news", str)
    picky: list[str] = []
    other: list[str] = []
    bus = t.bus()

    @bus.on(topic, group="picky", retry=ONCE)
    async def refuse_once(payload: str) -> None:
        picky.append(payload)
        if len(picky) == 1:
            raise Reject("not now")

    @bus.on(topic, group="other")
    async def take(payload: str) -> None:
        other.append(payload)

    async with bus:
        await bus.start()
        await bus.publish(topic, "x")
        box = await bus.dead_letters(topic, group="picky")
        await wait_dead(t, box, 1)
        await box.replay()
        await t.eventually(lambda: len(picky) == 2)
        await t.pause(2)
        assert await (await bus.dead_letters(topic, group="other")).peek() == []

    assert (picky, other) == (["x", "x"], ["x"])


@check("E8")
async def a_replay_does_not_loop(t: Case) -> None:
    """What fails again while a replay runs is dead-lettered again, and not replayed a second time."""
    calls: list[str] = []
    bus = t.bus()

    @bus.on(WORK, retry=ONCE)
    async def handle(payload: str) -> None:
        calls.append(payload)
        raise RuntimeError("still broken")

    async with bus:
        box = await _bury(t, bus, [f"m{n}" for n in range(10)])
        await bus.start()
        replayed = await box.replay()
        dead = await wait_dead(t, box, 10)

    assert replayed == 10
    t.count_handled(calls, [f"m{n}" for n in range(10)])
    assert {d.report.detail for d in dead} == {"still broken"}


@check("E9")
async def dropped_is_gone(t: Case) -> None:
    """Dropping some or all dead letters deletes these for good, and no other."""
    async with t.bus() as bus:
        box = await _bury(t, bus, list("abcde"))
        assert await box.drop(ids=["id-b", "id-d"]) == 2
        assert {d.message.body for d in await wait_dead(t, box, 3)} == {b"a", b"c", b"e"}
        assert await box.drop() == 3
        await wait_dead(t, box, 0)


@check("E10")
async def dead_letters_settle_like_messages(t: Case) -> None:
    """A received dead letter is dropped by an ack and stays by a nack or a close; it cannot die a second time."""
    source = await t.queue()
    await t.send(source.address, *numbered(3))
    tap = await t.tap(source)
    await tap.bury(*await tap.take(3))
    await tap.expect_nothing()
    dead = await t.tap(source.dead_letters)
    first, second, third = await dead.take(3)
    await dead.ack(first)
    await dead.nack(second, counted=False)
    (again,) = await dead.settle([DeadLetter(third, dict(third.headers))])
    await dead.aclose()
    dead = await t.tap(source.dead_letters)

    assert again is None or isinstance(again, SettleError)
    complete(await dead.drain(2), [second.body, third.body])
    await dead.expect_nothing()


@check("E11")
async def burying_adds_a_header_and_nothing_else(t: Case) -> None:
    """A dead letter's headers are exactly those it was given with the outcome."""
    source = await t.queue()
    (sent,) = await t.send(source.address, b"x", headers={"h": "v"})
    tap = await t.tap(source)
    (received,) = await tap.take()
    await tap.settle([DeadLetter(received, {**received.headers, DEAD: '{"reason": "é"}'})])
    dead = await t.tap(source.dead_letters)
    (buried,) = await dead.drain(1)

    assert buried.headers == {**sent.headers, DEAD: '{"reason": "é"}'}
    assert bodies([buried]) == [b"x"]


@check("E12")
async def an_unknown_type_is_dead_lettered_or_ignored(t: Case) -> None:
    """A message of a type that no handler takes is dead-lettered, or acked unseen by option; it is never guessed."""
    strict, lenient = Queue("strict", _A | _B), Queue("lenient", _A | _B)
    seen: list[Any] = []
    bus = t.bus()

    @bus.on(strict)
    async def handle(payload: _A) -> None:
        seen.append(payload)

    @bus.on(lenient, unknown="ignore")
    async def ignore(payload: _A) -> None:
        seen.append(payload)

    async with bus:
        await bus.start()
        await bus.send(strict, _B())
        await bus.send(lenient, _B())
        (dead,) = await wait_dead(t, await bus.dead_letters(strict), 1)
        await t.pause(2)
        assert await (await bus.dead_letters(lenient)).peek() == []

    assert dead.report.reason == "unknown-type"
    assert seen == []


@check("E13", needs="groups patterns")
async def a_replay_keeps_its_channel(t: Case) -> None:
    """A message that died in a pattern's group is replayed there, still with the name of the topic it came from."""
    seen: list[str] = []
    bus = t.bus()

    @bus.on(Topic("orders.*", str), group="all", retry=ONCE)
    async def handle(_: str, delivery: Delivery[str]) -> None:
        seen.append(delivery.channel)
        if len(seen) == 1:
            raise Reject("not now")

    async with bus:
        await bus.start()
        await bus.publish(Topic("orders.placed", str), "x")
        box = await bus.dead_letters(Topic("orders.*", str), group="all")
        await wait_dead(t, box, 1)
        assert await box.replay() == 1
        await t.eventually(lambda: len(seen) == 2)

    assert seen == ["orders.placed", "orders.placed"]
