"""A. What is published arrives, as it was, once it is confirmed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgbus.adapter import Address, Kind, SubscribeOptions
from msgbus.errors import ClosedError, MessageTooLarge, Unroutable
from msgbus.testing._check import check
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgbus.adapter import Received
    from msgbus.testing.case import Case


def numbered(count: int) -> list[bytes]:
    """Return *count* different bodies."""
    return [b"%d" % number for number in range(count)]


def complete(received: Sequence[Received], expected: Sequence[bytes]) -> None:
    """Fail unless exactly the *expected* bodies were received, in any order."""
    assert sorted(message.body for message in received) == sorted(expected)


@check("A1")
async def an_empty_batch_is_nothing(t: Case) -> None:
    """Publishing no message confirms nothing and delivers nothing."""
    source = await t.queue()
    tap = await t.tap(source)

    assert list(await t.adapter.publish([])) == []
    await tap.expect_nothing()


@check("A2")
async def one_message_arrives(t: Case) -> None:
    """One message arrives, once."""
    source = await t.queue()
    await t.send(source.address, b"hello")
    tap = await t.tap(source)
    (received,) = await tap.take()
    await tap.ack(received)

    assert received.body == b"hello"
    await tap.expect_nothing()


@check("A3")
async def a_hundred_messages_arrive(t: Case) -> None:
    """A hundred messages arrive, each once."""
    source = await t.queue()
    await t.send(source.address, *numbered(100))
    tap = await t.tap(source)

    complete(await tap.drain(100), numbered(100))
    await tap.expect_nothing()


@check("A4", timeout=120)
async def five_thousand_messages_arrive(t: Case) -> None:
    """Five thousand messages that are published while they are consumed arrive, each once."""
    source = await t.queue()
    expected = numbered(t.many(5_000))
    tap = await t.tap(source, prefetch=500)
    publishing = asyncio.create_task(t.send(source.address, *expected))
    received = await tap.drain(len(expected), within=60)
    await publishing

    complete(received, expected)


@check("A5")
async def an_empty_body_arrives(t: Case) -> None:
    """A message with an empty body is a message."""
    source = await t.queue()
    await t.send(source.address, b"")
    tap = await t.tap(source)

    assert bodies(await tap.drain(1)) == [b""]


@check("A6")
async def a_json_body_arrives_byte_by_byte(t: Case) -> None:
    """A JSON body arrives byte by byte: not parsed, wrapped or formatted anew."""
    source = await t.queue()
    body = '{"Foo":  "Bar", "b":1.0,\n "a":"\\u00e9 é 😀"}'.encode()
    await t.send(source.address, body)
    tap = await t.tap(source)

    assert bodies(await tap.drain(1)) == [body]


@check("A7")
async def any_bytes_arrive(t: Case) -> None:
    """A body may be any bytes, of no text encoding."""
    source = await t.queue()
    awkward = [bytes(range(256)), b"\xff\xfe\x00", b"\x00" * 10, b"\r\n.\r\n"]
    await t.send(source.address, *awkward)
    tap = await t.tap(source)

    complete(await tap.drain(len(awkward)), awkward)


@check("A8")
async def a_body_of_the_maximum_size_arrives(t: Case) -> None:
    """A body of the declared maximum arrives."""
    source = await t.queue()
    body = bytes(t.capabilities.max_body)
    await t.send(source.address, body)
    tap = await t.tap(source)
    (received,) = await tap.drain(1)

    assert received.body == body


@check("A9")
async def one_byte_more_is_refused(t: Case) -> None:
    """A body of one byte over the maximum is refused with the limit, and the rest of its batch is confirmed."""
    source = await t.queue()
    limit = t.capabilities.max_body
    results = await t.adapter.publish(
        [t.message(source.address, body) for body in (b"before", bytes(limit + 1), b"after")]
    )
    tap = await t.tap(source)

    assert isinstance(results[1], MessageTooLarge)
    assert results[1].limit == limit
    assert results[1].size == limit + 1
    assert (results[0], results[2]) == (None, None)
    complete(await tap.drain(2), [b"before", b"after"])
    await tap.expect_nothing()


@check("A10")
async def channels_are_isolated(t: Case) -> None:
    """What is published to one channel is not seen on another, however similar its name."""
    first, second = await t.queue(), await t.queue()
    await t.send(first.address, b"first")
    await t.send(second.address, b"second")
    one, two = await t.tap(first), await t.tap(second)

    assert bodies(await one.drain(1)) == [b"first"]
    assert bodies(await two.drain(1)) == [b"second"]
    await one.expect_nothing()
    await two.expect_nothing()


@check("A11", needs="unroutable")
async def publishing_to_nothing_is_an_error(t: Case) -> None:
    """A message to a queue that does not exist is `Unroutable`, and the others of its batch are confirmed."""
    source = await t.queue()
    nowhere = Address(Kind.QUEUE, t.name("nowhere"))
    results = await t.adapter.publish([t.message(nowhere, b"lost"), t.message(source.address, b"found")])

    assert isinstance(results[0], Unroutable), f"expected Unroutable, got {results[0]!r}"
    assert results[1] is None


@check("A12")
async def use_after_close_is_an_error(t: Case) -> None:
    """After `aclose` an adapter and its subscriptions raise `ClosedError`."""
    source = await t.queue()
    adapter = await t.open()
    tap = await t.tap(source, on=adapter)
    await adapter.aclose()

    await t.raises(ClosedError, adapter.publish([t.message(source.address, b"late")]))
    await t.raises(ClosedError, tap.subscription.receive(1, 0.1))
    await t.raises(ClosedError, adapter.subscribe(source, SubscribeOptions()))


@check("A13")
async def closing_twice_is_harmless(t: Case) -> None:
    """Subscriptions and adapters may be closed again, and at the same time by several."""
    source = await t.queue()
    adapter = await t.open()
    tap = await t.tap(source, on=adapter)
    await asyncio.gather(*(tap.subscription.aclose() for _ in range(10)))
    await asyncio.gather(*(adapter.aclose() for _ in range(10)))
    await tap.subscription.aclose()
    await adapter.aclose()


@check("A14", duplicates=20)
async def a_cancelled_publish_harms_nothing(t: Case) -> None:
    """A cancelled publish leaves the adapter usable; messages confirmed before and after it arrive."""
    source = await t.queue()
    for turn in range(20):
        doomed = asyncio.create_task(t.adapter.publish([t.message(source.address, b"doomed")]))
        for _ in range(turn // 2):
            await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.wait([doomed])
        await t.send(source.address, b"kept %d" % turn)
    tap = await t.tap(source)
    received = {message.body for message in await tap.take_all()}

    assert received - {b"doomed"} == {b"kept %d" % turn for turn in range(20)}


@check("A15")
async def a_cancelled_receive_loses_nothing(t: Case) -> None:
    """A receive that is cancelled, whenever it is, loses no message."""
    source = await t.queue()
    tap = await t.tap(source)
    received: list[Received] = []
    for turn in range(20):
        doomed = asyncio.create_task(tap.subscription.receive(10, 5))
        for _ in range(turn):
            await asyncio.sleep(0)
        await t.send(source.address, b"%d" % turn)
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.wait([doomed])
        if not doomed.cancelled():
            received += doomed.result()
    received += await tap.take(20 - len(received))

    complete(received, numbered(20))


@check("A16", timeout=120)
async def twenty_channels_at_once(t: Case) -> None:
    """Twenty channels with a hundred messages each, published and consumed at once, are each complete."""
    count = t.many(100)

    async def one() -> None:
        source = await t.queue()
        tap = await t.tap(source)
        expected = [b"%s %d" % (source.address.name.encode(), n) for n in range(count)]
        _, received = await asyncio.gather(t.send(source.address, *expected), tap.drain(count, within=60))
        complete(received, expected)

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(one())


@check("A17")
async def a_waiting_consumer_is_woken(t: Case) -> None:
    """A consumer that waits on an empty queue gets a message soon after it is published."""
    source = await t.queue()
    tap = await t.tap(source)
    await tap.expect_nothing()
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(tap.subscription.receive(1, 10.0))
    await t.pause(0.5)
    await t.send(source.address, b"wake up")
    published = loop.time()
    await asyncio.wait([waiting], timeout=3 * t.harness.patience)
    took = loop.time() - published
    waiting.cancel()
    await asyncio.wait([waiting])

    assert not waiting.cancelled(), f"the consumer still waited {took:.1f} s after the message was confirmed"
    assert bodies(waiting.result()) == [b"wake up"]
    t.note(wake_up_ms=round(took * 1000, 1))


@check("A18")
async def an_empty_receive_returns_in_time(t: Case) -> None:
    """A receive on an empty queue returns nothing once its wait is over, not much earlier or later."""
    tap = await t.tap(await t.queue())
    loop = asyncio.get_running_loop()
    await tap.subscription.receive(1, 0.1)  # the first one may have to set things up
    started = loop.time()
    got = await tap.subscription.receive(1, t.tick)
    took = loop.time() - started

    assert list(got) == []
    assert 0.5 * t.tick <= took <= t.tick + 5 * t.harness.patience
