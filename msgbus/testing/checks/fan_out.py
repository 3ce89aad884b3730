"""B. Every group gets each message; the members of a group share them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgbus.adapter import Address, Kind, Source, SubscribeOptions, Topology
from msgbus.testing._check import check
from msgbus.testing.checks.round_trip import complete, numbered
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from msgbus.adapter import Received, Start
    from msgbus.testing.case import Case
    from msgbus.testing.tap import Tap


@check("B1", needs="groups")
async def each_group_gets_all(t: Case) -> None:
    """Two groups each get every message."""
    one, two = await t.topic("one", "two")
    await t.send(one.address, *numbered(50))
    for source in (one, two):
        tap = await t.tap(source)
        complete(await tap.drain(50), numbered(50))
        await tap.expect_nothing()


@check("B2", needs="groups")
async def members_of_a_group_share(t: Case) -> None:
    """Three members of one group share its messages: each message goes to one of them."""
    (source,) = await t.topic("group")
    taps = [await t.tap(source, prefetch=10) for _ in range(3)]
    await t.send(source.address, *numbered(100))
    shares = await _share(t, taps, 100)

    complete([message for share in shares for message in share], numbered(100))
    t.note(shares=[len(share) for share in shares])


@check("B3", needs="groups")
async def a_declared_group_misses_nothing(t: Case) -> None:
    """A declared group gets what is published from then on, even if no member was ever connected."""
    early, _ = await t.topic("early", "other")
    await t.send(early.address, b"before anybody came")
    late = Source(early.address, "late")
    await t.adapter.declare(Topology((), (late,)))
    await t.send(early.address, b"after the second declaration")

    tap = await t.tap(early)
    complete(await tap.drain(2), [b"before anybody came", b"after the second declaration"])
    tap = await t.tap(late)
    got = bodies(await tap.drain(1))
    if got == [b"before anybody came"]:  # a log may give a new group all that it still has
        got = bodies(await tap.drain(1))
    assert got == [b"after the second declaration"]


@check("B4", needs="groups", duplicates=200, timeout=120)
async def members_come_and_go(t: Case) -> None:
    """Members that join and leave under load lose nothing; what they held goes to the others."""
    (source,) = await t.topic("group")
    count = t.many(1_000)
    publishing = asyncio.create_task(t.send(source.address, *numbered(count)))
    seen: list[bytes] = []
    stay = await t.tap(source, prefetch=20)
    for _ in range(6):
        guest = await t.tap(source, prefetch=20)
        for tap in (guest, stay):
            received = list(await tap.subscription.receive(20, 2 * t.tick))
            done, left = received[: len(received) // 2], received[len(received) // 2 :]
            await tap.ack(*done)
            seen += [message.body for message in done]
            await tap.nack(*(left if tap is stay else []), counted=False)
        await guest.aclose()  # holding the second half of what it got
    await publishing
    seen += await _rest(t, stay, set(numbered(count)) - set(seen))

    t.count_handled(seen, numbered(count))


async def _rest(t: Case, tap: Tap, missing: set[bytes]) -> list[bytes]:
    seen: list[bytes] = []
    deadline = t.deadline(30)
    while not missing <= set(seen):
        assert asyncio.get_running_loop().time() < deadline, f"{len(missing - set(seen))} messages never came"
        batch = await tap.subscription.receive(20, 0.5)
        await tap.ack(*batch)
        seen += [message.body for message in batch]
    return seen


@check("B5", needs="groups", timeout=180)
async def fifty_members_get_five_thousand_messages(t: Case) -> None:
    """Fifty members of one group together get exactly the five thousand messages published."""
    (source,) = await t.topic("group")
    count = t.many(5_000)
    taps = [await t.tap(source, prefetch=50) for _ in range(50)]
    async with asyncio.TaskGroup() as group:  # a publish that fails says so, instead of a share that is too small
        group.create_task(t.send(source.address, *numbered(count)))
        shares = await _share(t, taps, count, within=90)

    complete([message for share in shares for message in share], numbered(count))


async def _share(t: Case, taps: list[Tap], count: int, *, within: float = 30) -> list[list[Received]]:
    """Let all *taps* receive and ack at once until they have *count* messages together."""
    shares: list[list[Received]] = [[] for _ in taps]
    deadline = t.deadline(within)

    async def work(tap: Tap, share: list[Received]) -> None:
        while sum(map(len, shares)) < count:
            assert asyncio.get_running_loop().time() < deadline, f"only {sum(map(len, shares))} of {count} came"
            batch = await tap.subscription.receive(50, 0.2)
            await tap.ack(*batch)
            share += batch

    async with asyncio.TaskGroup() as group:
        for tap, share in zip(taps, shares, strict=True):
            group.create_task(work(tap, share))
    return shares


@check("B6", needs="groups")
async def a_message_to_one_group_reaches_no_other(t: Case) -> None:
    """A message published to one group (as a replay is) reaches that group and nobody else."""
    one, two = await t.topic("one", "two")
    await t.send(one, b"for one only")
    await t.send(one.address, b"for all")
    first, second = await t.tap(one), await t.tap(two)

    complete(await first.drain(2), [b"for one only", b"for all"])
    assert bodies(await second.drain(1)) == [b"for all"]
    await second.expect_nothing()


@check("B7", needs="groups")
async def groups_settle_apart(t: Case) -> None:
    """What one group acks, gives back or dead-letters changes nothing for another."""
    one, two = await t.topic("one", "two")
    await t.send(one.address, *numbered(3))
    first = await t.tap(one)
    acked, returned, buried = await first.take(3)
    await first.ack(acked)
    await first.nack(returned)
    await first.bury(buried)
    second = await t.tap(two)

    complete(await second.drain(3), numbered(3))
    await second.expect_nothing()
    assert bodies(await first.drain(1)) == [returned.body]


@check("B8", needs="groups patterns")
async def a_pattern_gets_all_matching_topics(t: Case) -> None:
    """A group on a pattern gets the messages of every matching topic, each with its topic's name, and no other."""
    base = t.name("p")
    names = [f"{base}.order.placed", f"{base}.order.paid.late", f"{base}.invoice.placed"]
    topics = [Address(Kind.TOPIC, name) for name in names]
    star = Source(Address(Kind.TOPIC, f"{base}.*.placed"), "star")
    rest = Source(Address(Kind.TOPIC, f"{base}.order.#"), "rest")
    await t.adapter.declare(Topology(tuple(topics), (star, rest)))
    for topic in topics:
        await t.send(topic, topic.name.encode())
    by_star, by_rest = await t.tap(star), await t.tap(rest)
    got_star, got_rest = await by_star.drain(2), await by_rest.drain(2)

    assert {m.channel: m.body.decode() for m in got_star} == {names[0]: names[0], names[2]: names[2]}
    assert {m.channel: m.body.decode() for m in got_rest} == {names[0]: names[0], names[1]: names[1]}
    await by_star.expect_nothing()
    await by_rest.expect_nothing()


@check("B9", needs="groups replay")
async def a_group_can_start_anywhere(t: Case) -> None:
    """A new group can begin with the first message, the next one, a time or a position."""
    (known,) = await t.topic("known")
    await t.send(known.address, b"0", b"1")
    await t.pause(2)
    middle = datetime.now(UTC)
    await t.pause(2)
    await t.send(known.address, b"2", b"3")
    tap = await t.tap(known)
    positions = {m.body: m.position for m in await tap.drain(4)}
    position = positions[b"2"]
    assert isinstance(position, int), f"an adapter with replay gives positions, got {position!r}"

    beginnings: list[tuple[Start, list[bytes]]] = [
        ("earliest", numbered(4)),
        (middle, [b"2", b"3"]),
        (position, [b"2", b"3"]),
    ]
    for start, expected in beginnings:
        assert await _replay(t, known.address, start, len(expected)) == expected, f"start={start}"
    assert await _replay(t, known.address, "latest", 0) == []


async def _replay(t: Case, address: Address, start: Start, count: int) -> list[bytes]:
    source = Source(address, f"replay-{t.name('g').rpartition('.')[2]}")
    await t.adapter.declare(Topology((), (source,)))
    subscription = await t.adapter.subscribe(source, SubscribeOptions(start=start))
    try:
        got: list[Received] = []
        deadline = t.deadline()
        while asyncio.get_running_loop().time() < deadline:
            batch = await subscription.receive(100, max(3 * t.tick, 1.0) if len(got) >= count else 0.5)
            got += batch
            if len(got) >= count and not batch:
                break
        return sorted(message.body for message in got)
    finally:
        await subscription.aclose()
