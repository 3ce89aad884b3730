"""M. Names and what exists under them: created, verified or left alone; never mixed up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgbus import Bus, Queue, Topic
from msgbus.adapter import Address, Kind, Provision, Source, Topology
from msgbus.errors import ChannelError, MsgbusError, TopologyError, Unroutable
from msgbus.testing._check import check
from msgbus.testing.checks.round_trip import complete, numbered
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from msgbus.testing.case import Case

HOSTILE = (
    "", ".", "a.", ".a", "a..b", "../etc", "a/b", "a b", "a\nb", "a\r\nX: y", "a\x00b", "a;b", "'; DROP TABLE x; --",
    "ünï", "a:b", "a@b", "a%b", "{a}", "$a", "x" * 300, "a.#.b", "#a",
)  # fmt: skip


@check("M1")
async def declaring_again_changes_nothing(t: Case) -> None:
    """Declaring what exists, again and from several places at once, keeps what is in it."""
    source = await t.queue()
    await t.send(source.address, *numbered(5))
    other = await t.open()
    topology = Topology((source.address,), (source,))
    await asyncio.gather(*(adapter.declare(topology) for adapter in (t.adapter, other) for _ in range(5)))
    tap = await t.tap(source, on=other)

    complete(await tap.drain(5), numbered(5))


@check("M2")
async def many_may_declare_the_same_at_once(t: Case) -> None:
    """Ten adapters that declare the same new things at the same time all succeed."""
    kind = Kind.TOPIC if t.capabilities.groups else Kind.QUEUE
    address = Address(kind, t.name("new"))
    source = Source(address, "group" if kind is Kind.TOPIC else "")
    adapters = [await t.open() for _ in range(10)]
    await asyncio.gather(*(adapter.declare(Topology((address,), (source,))) for adapter in adapters))
    await t.send(address, b"x")
    tap = await t.tap(source)

    assert bodies(await tap.drain(1)) == [b"x"]


@check("M3", needs="order=key provision")
async def what_differs_is_an_error(t: Case) -> None:
    """Declaring a channel with a key that exists without one (or the other way) says what differs."""
    for keyed in (False, True):
        source = await t.queue(keyed=keyed)
        changed = Address(Kind.QUEUE, source.address.name, keyed=not keyed)
        error = await t.raises(TopologyError, (await t.open()).declare(Topology((changed,), (Source(changed),))))
        assert source.address.name.rpartition(".")[2] in str(error)


@check("M4")
async def verify_creates_nothing(t: Case) -> None:
    """With ``verify`` a missing queue or group is an error by name, and still missing afterwards."""
    verifying = await t.open(provision=Provision.VERIFY)
    missing = Source(Address(Kind.QUEUE, t.name("missing")))
    for _ in range(2):
        error = await t.raises(TopologyError, verifying.declare(Topology((missing.address,), (missing,))))
        assert missing.address.name.rpartition(".")[2] in str(error)


@check("M5")
async def verify_accepts_what_exists(t: Case) -> None:
    """With ``verify`` and ``skip`` existing queues can be used like any."""
    source = await t.queue()
    for provision in (Provision.VERIFY, Provision.SKIP):
        adapter = await t.open(provision=provision)
        await adapter.declare(Topology((source.address,), (source,)))
        await t.publish([t.message(source.address, provision.encode())], on=adapter)
        tap = await t.tap(source, on=adapter)
        assert bodies(await tap.drain(1)) == [provision.encode()]
        await tap.aclose()


@check("M6", needs="unroutable")
async def skip_does_not_create(t: Case) -> None:
    """With ``skip`` nothing is looked at and nothing created: publishing to what is missing is `Unroutable`."""
    skipping = await t.open(provision=Provision.SKIP)
    missing = Source(Address(Kind.QUEUE, t.name("missing")))
    await skipping.declare(Topology((missing.address,), (missing,)))
    (error,) = await skipping.publish([t.message(missing.address, b"x")])

    assert isinstance(error, Unroutable), f"expected Unroutable, got {error!r}"


@check("M7", timeout=120)
async def similar_names_never_clash(t: Case) -> None:
    """Names that differ in one character, or only in case, are different queues; all allowed characters work."""
    base = t.name("n")
    tails = ["a.b", "a-b", "a_b", "ab", "A.b", "a.B", "a.b.c", "a_2eb", "a-2eb", "a_5fb", "a__b", "a--b", "0", "dlq"]
    sources = [Source(Address(Kind.QUEUE, f"{base}.{tail}")) for tail in tails]
    await t.adapter.declare(Topology(tuple(s.address for s in sources), tuple(sources)))
    for source in sources:
        await t.send(source.address, source.address.name.encode())
    for source in sources:
        tap = await t.tap(source)
        assert bodies(await tap.drain(1)) == [source.address.name.encode()]
        await tap.expect_nothing(0.2)
        await tap.aclose()


@check("M8", needs="groups")
async def similar_groups_never_clash(t: Case) -> None:
    """Groups and topics whose joined names look alike are different subscriptions.

    A queue and a topic of one name are different too, or the second one is refused by name.
    """
    base = t.name("n")
    pairs = [("a", "b.c"), ("a.b", "c"), ("a", "b-c"), ("a-b", "c"), ("a", "dlq"), ("a", "b")]
    sources = [Source(Address(Kind.TOPIC, f"{base}.{topic}"), group) for topic, group in pairs]
    queue = Source(Address(Kind.QUEUE, f"{base}.a"))
    await t.adapter.declare(Topology(tuple(dict.fromkeys(s.address for s in sources)), tuple(sources)))
    try:
        await t.adapter.declare(Topology((queue.address,), (queue,)))
        sources.append(queue)
    except ChannelError as exc:
        t.note(queue_and_topic_of_one_name=str(exc))
    for source in sources:
        await t.send(source if source.group else source.address, str(source).encode()[:50])
    for source in sources:
        tap = await t.tap(source)
        assert bodies(await tap.drain(1)) == [str(source).encode()[:50]]
        await tap.expect_nothing(0.2)
        await tap.aclose()


@check("M9")
async def long_names_work_or_are_refused(t: Case) -> None:
    """A name of the greatest length works, or is refused by name when it is declared; it is never cut."""
    base = t.name("n")
    names = [base + "." + "x" * (118 - len(base)) + end for end in "ab"]
    sources = [Source(Address(Kind.QUEUE, name)) for name in names]
    try:
        await t.adapter.declare(Topology(tuple(s.address for s in sources), tuple(sources)))
    except ChannelError as exc:
        t.note(longest_name=str(exc))
        return
    for source in sources:
        await t.send(source.address, source.address.name[-1].encode())
    for source in sources:
        tap = await t.tap(source)
        assert bodies(await tap.drain(1)) == [source.address.name[-1].encode()]


@check("M10")
async def hostile_names_are_refused(t: Case) -> None:
    """Names with path parts, breaks, quotes, wildcards or 300 characters are refused when the channel is made."""
    del t
    for name in HOSTILE:
        for make in (Queue, Topic, lambda n: Bus("memory://").on(Topic("t"), group=n)):
            try:
                make(name)
            except ChannelError:
                continue
            raise AssertionError(f"{name!r} was accepted")


@check("M11")
async def stats_count_each_state(t: Case) -> None:
    """The figures tell ready, in flight, delayed and dead messages apart, where the broker knows them."""
    source = await t.queue()
    await t.send(source.address, *numbered(6))
    delayed = t.capabilities.max_delay > 0
    if delayed:
        await t.send(source.address, b"later", delay=min(60.0, t.capabilities.max_delay))
    tap = await t.tap(source, prefetch=3)
    held = await tap.take(3)
    await tap.bury(held[0])
    await tap.ack(held[1])
    expected = {"ready": 3, "in_flight": 1, "delayed": 1 if delayed else 0, "dead": 1}
    last: dict[str, int | None] = {}

    async def right() -> bool:
        stats = await t.adapter.stats(source)
        last.update({name: getattr(stats, name) for name in expected})
        return all(got is None or got == expected[name] for name, got in last.items())

    try:
        await t.eventually(right, what="the figures are right")
    finally:
        t.note(**last)
    assert last["ready"] is not None, "an adapter must at least tell how much is ready"


@check("M12", needs="browse")
async def browsing_disturbs_nobody(t: Case) -> None:
    """Browsing pages through messages (in the queue's order, if it has one), and takes them from no consumer."""
    source = await t.queue()
    (*_,) = await t.send(source.address, *numbered(25), headers={"h": "v"})
    pages, after = [], None
    while page := await t.adapter.browse(source, limit=10, after=after):
        pages.append(page)
        after = str(page[-1].position)
    tap = await t.tap(source)
    received = await tap.drain(25)

    assert [len(page) for page in pages] == [10, 10, 5]
    browsed = [m.body for page in pages for m in page]
    assert (browsed if t.capabilities.order == "queue" else sorted(browsed, key=int)) == numbered(25)
    assert all(m.headers["h"] == "v" for page in pages for m in page)
    complete(received, numbered(25))
    assert {m.deliveries for m in received} <= {0, 1}


@check("M13")
async def consuming_the_undeclared_is_an_error(t: Case) -> None:
    """Subscribing to, or asking after, a queue that nobody declared raises an error of ours."""
    missing = Source(Address(Kind.QUEUE, t.name("missing")))
    error = await t.raises(MsgbusError, t.adapter.stats(missing))

    assert isinstance(error, TopologyError), f"expected TopologyError, got {error!r}"


@check("M14", needs="groups remove")
async def a_removed_group_is_gone(t: Case) -> None:
    """Removing a group takes its messages and dead letters with it and disturbs no other; it can be declared anew."""
    removed, kept = await t.topic("removed", "kept")
    await t.send(removed.address, *numbered(3))
    tap = await t.tap(removed)
    await tap.bury(*await tap.take(1))
    await tap.aclose()
    for _ in range(2):
        await t.adapter.remove(removed)
    await t.raises(TopologyError, t.adapter.stats(removed))
    await t.send(kept.address, b"3")
    await t.adapter.declare(Topology((removed.address,), (removed,)))
    await t.send(kept.address, b"4")

    tap = await t.tap(kept)
    complete(await tap.drain(5), numbered(5))
    tap, dead = await t.tap(removed), await t.tap(removed.dead_letters)
    got = bodies(await tap.drain(1))
    while t.capabilities.replay and b"4" not in got:  # a log may give a new group all that it still has
        got += bodies(await tap.drain(1))
    assert got[-1] == b"4"
    await dead.expect_nothing()
