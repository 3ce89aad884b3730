"""C. An ack is for good, a nack brings the message back, and neither touches any other message."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgbus.adapter import Ack, Nack
from msgbus.errors import SettleError
from msgbus.testing._check import check
from msgbus.testing.checks.round_trip import complete, numbered
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from msgbus.testing.case import Case


@check("C1")
async def an_ack_is_for_good(t: Case) -> None:
    """An acked message never comes again, to no other consumer and after no reconnect."""
    source = await t.queue()
    await t.send(source.address, *numbered(10))
    tap = await t.tap(source)
    await tap.drain(10)
    await tap.expect_nothing()
    await tap.aclose()
    other = await t.tap(source, on=await t.open())

    await other.expect_nothing()


@check("C2")
async def a_nack_brings_it_back(t: Case) -> None:
    """A nacked message comes again, with body and headers as they were, as often as it is nacked."""
    source = await t.queue()
    (sent,) = await t.send(source.address, b"again", headers={"h": "v"})
    tap = await t.tap(source)
    for _ in range(4):
        (received,) = await tap.take()
        assert received.body == b"again"
        assert {k: v for k, v in received.headers.items() if k in sent.headers} == sent.headers
        await tap.nack(received)
    await tap.drain(1)
    await tap.expect_nothing()


@check("C3", needs="max_delay")
async def a_nack_with_delay_is_never_early(t: Case) -> None:
    """A message nacked with a delay is not seen before it is over, and by nobody."""
    source = await t.queue()
    delays = [t.tick * n for n in (2, 3, 5)]
    await t.send(source.address, *numbered(len(delays)))
    tap = await t.tap(source)
    due = {}
    for received, delay in zip(await tap.take(len(delays)), delays, strict=True):
        await tap.nack(received, delay=delay)
        # The delay may count from any moment of the call, the latest is safe only for lateness.
        due[received.body] = time.time() + delay
    lateness = []
    slack = 0.6 * t.tick  # the call's own duration: a delay counts from its beginning
    for _ in delays:
        (received,) = await tap.drain(1)
        late = time.time() - due[received.body]
        assert late >= -slack, f"{received.body!r} came {-late:.3f} s early"
        lateness.append(round(late * 1000))
    t.note(lateness_ms=lateness)


@check("C4")
async def nacking_two_of_ten_disturbs_no_other(t: Case) -> None:
    """Of ten messages two are nacked and eight acked: the two come again, the eight do not."""
    source = await t.queue()
    await t.send(source.address, *numbered(10))
    tap = await t.tap(source)
    received = await tap.take(10)
    chosen = [received[3], received[7]]
    await tap.settle([Nack(m, headers=dict(m.headers)) if m in chosen else Ack(m) for m in received])

    complete(await tap.drain(2), [m.body for m in chosen])
    await tap.expect_nothing()


@check("C5")
async def settling_twice_disturbs_nothing(t: Case) -> None:
    """The second settlement of a message is a `SettleError` or nothing: an acked one is not brought back by a nack."""
    source = await t.queue()
    await t.send(source.address, *numbered(2))
    tap = await t.tap(source)
    first, second = await tap.take(2)
    await tap.ack(first)
    (again,) = await tap.settle([Ack(first)])
    (nacked,) = await tap.settle([Nack(first, headers=dict(first.headers))])
    await tap.ack(second)

    assert again is None or isinstance(again, SettleError)
    assert nacked is None or isinstance(nacked, SettleError)
    await tap.expect_nothing()
    t.note(second_ack=type(again).__name__, nack_after_ack=type(nacked).__name__)


@check("C6")
async def unacked_at_close_comes_back(t: Case) -> None:
    """What a consumer holds when it closes is available to another one at once, without loss."""
    source = await t.queue()
    await t.send(source.address, *numbered(20))
    tap = await t.tap(source)
    held = await tap.take(20)
    await tap.ack(*held[:5])
    await tap.aclose()
    other = await t.tap(source)

    complete(await other.drain(15), [m.body for m in held[5:]])
    await other.expect_nothing()


@check("C7")
async def a_closed_adapter_gives_everything_back(t: Case) -> None:
    """What a whole adapter holds when it closes comes to another one."""
    source = await t.queue()
    await t.send(source.address, *numbered(10))
    adapter = await t.open()
    tap = await t.tap(source, on=adapter)
    await tap.take(10)
    await adapter.aclose()
    other = await t.tap(source)

    complete(await other.drain(10), numbered(10))


@check("C8")
async def messages_settle_in_any_order(t: Case) -> None:
    """Messages may be settled in any order; what is settled early never comes again, however old the open ones are."""
    source = await t.queue()
    await t.send(source.address, *numbered(30))
    tap = await t.tap(source)
    received = await tap.take(30)
    for message in reversed(received[10:]):
        await tap.ack(message)
    for message in received[1:10]:
        await tap.ack(message)
    await tap.aclose()
    tap = await t.tap(source)

    assert bodies(await tap.drain(1)) == [received[0].body]
    await tap.expect_nothing()


@check("C9")
async def a_batch_reports_each_failure(t: Case) -> None:
    """In a batch of outcomes each has its own result: one that fails does not spoil the others."""
    source = await t.queue()
    await t.send(source.address, *numbered(3))
    tap = await t.tap(source)
    first, second, third = await tap.take(3)
    await tap.ack(second)
    results = await tap.settle([Ack(first), Ack(second), Nack(third, headers=dict(third.headers))])

    assert results[0] is None
    assert results[1] is None or isinstance(results[1], SettleError)
    assert results[2] is None
    assert bodies(await tap.drain(1)) == [third.body]
    await tap.expect_nothing()


@check("C10", needs="delivery_count=exact")
async def deliveries_are_counted(t: Case) -> None:
    """The broker's count of deliveries goes 1, 2, 3 with each nack."""
    source = await t.queue()
    await t.send(source.address, b"x")
    tap = await t.tap(source)
    counts = []
    for _ in range(3):
        (received,) = await tap.take()
        counts.append(received.deliveries)
        await tap.nack(received)

    assert counts == [1, 2, 3]


@check("C11", needs="delivery_count=exact")
async def giving_back_is_not_counted(t: Case) -> None:
    """Messages given back untried, by ``Nack(counted=False)`` or by closing, do not count as delivered."""
    source = await t.queue()
    await t.send(source.address, b"x")
    tap = await t.tap(source)
    for _ in range(2):
        await tap.nack(*await tap.take(), counted=False)
    await tap.take()
    await tap.aclose()
    tap = await t.tap(source)
    (received,) = await tap.take()

    assert received.deliveries == 1


@check("C12", needs="max_delay")
async def others_flow_while_one_waits(t: Case) -> None:
    """While a nacked message waits for its delay, all others are delivered; it waits at the broker, not in memory."""
    source = await t.queue()
    await t.send(source.address, b"slow")
    tap = await t.tap(source, prefetch=1)
    (slow,) = await tap.take()
    await tap.nack(slow, delay=10 * t.tick)
    started = time.monotonic()
    await t.send(source.address, *numbered(5))
    complete(await tap.drain(5), numbered(5))
    took = time.monotonic() - started

    if took < 8 * t.tick:
        await tap.expect_nothing(1)
    assert bodies(await tap.drain(1)) == [b"slow"]


@check("C13")
async def no_more_is_held_than_the_prefetch(t: Case) -> None:
    """A consumer is handed no more unsettled messages than its prefetch, and more as soon as it settles some."""
    source = await t.queue()
    await t.send(source.address, *numbered(20))
    tap = await t.tap(source, prefetch=5)
    held = await tap.take(5)
    await tap.expect_nothing()
    await tap.ack(*held[:2])
    held += await tap.take(2)
    await tap.expect_nothing()
    await tap.ack(*held[2:])
    held += await tap.drain(13)

    complete(held, numbered(20))


@check("C14", needs="competing")
async def a_slow_consumer_leaves_the_rest_to_others(t: Case) -> None:
    """What a consumer's prefetch keeps from it can be received by another one meanwhile."""
    source = await t.queue()
    await t.send(source.address, *numbered(10))
    slow, quick = await t.tap(source, prefetch=2), await t.tap(source, prefetch=10)
    held = await slow.take(2)
    got = await quick.drain(8)
    await slow.ack(*held)

    complete(held + got, numbered(10))
