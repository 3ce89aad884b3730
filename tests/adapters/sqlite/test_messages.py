"""Unkeyed queues: order, leases, counts, dead letters, cancelling and closing."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from msgbus.adapter import ID, Ack, DeadLetter, Nack, Outgoing, Source
from msgbus.errors import LeaseLost, MessageTooLarge, PublishRejected, UnsupportedFeature
from msgbus_sqlite import _publish
from msgbus_sqlite._headers import dump_headers, load_headers


def test_a_queue_is_first_in_first_out_and_what_comes_back_comes_first(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n)) for n in range(6)))
            consumer = await kit.consumer(adapter, Source(queue))
            received = await consumer.receive(4, 1)
            assert kit.texts(received) == ["0", "1", "2", "3"]
            await consumer.settle([Nack(received[2]), Ack(received[0]), Nack(received[1]), Ack(received[3])])
            assert kit.texts(await consumer.receive(10, 1)) == ["1", "2", "4", "5"]

    kit.run(body())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"plain": "ascii", "empty": ""},
        {"{": "brace"},
        {"value": "{brace}", "url": "a:b?c=d"},
        {"lines": "a\nb", "more": "c\r\nd"},
        {"unicode": "Zürich ☂", "name ü": "x"},
        {"half": "\ud800", "zero": "a\x00b"},
    ],
)
def test_headers_come_back_as_they_were(kit, headers):
    assert headers == load_headers(dump_headers(headers))

    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            message = kit.message(queue, "x")
            message.headers = headers
            await kit.publish(adapter, message)
            (received,) = await (await kit.consumer(adapter, Source(queue))).receive(1, 1)
            assert headers == received.headers

    kit.run(body())


def test_bodies_keys_and_positions_come_back_as_they_were(kit):
    async def body():
        queue, clock = kit.queue(), kit.Clock()
        async with kit.adapter(queue, clock=clock) as adapter:
            messages = [kit.message(queue, "", key=key) for key in (None, "", "k\x00ey", "schlüssel")]
            messages[1].body = bytes(range(256)) * 1000
            await kit.publish(adapter, *messages)
            received = await (await kit.consumer(adapter, Source(queue))).receive(9, 1)
            assert [m.body for m in messages] == [r.body for r in received]
            assert [m.key for m in messages] == [r.key for r in received]
            assert [(1, "orders", clock.now())] * 4 == [(r.deliveries, r.channel, r.time) for r in received]
            assert sorted({r.position for r in received}) == [r.position for r in received]

    kit.run(body())


def test_what_cannot_be_stored_fails_alone(kit, monkeypatch):
    monkeypatch.setattr(_publish, "MAX_BODY", 10)

    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            batch = [kit.message(queue, "fits"), kit.message(queue, "12345678901"), kit.message(queue, "x", "\ud800")]
            first, second, third = await adapter.publish(batch)
            assert first is None
            assert isinstance(second, MessageTooLarge)
            assert isinstance(third, PublishRejected)
            assert kit.texts(await (await kit.consumer(adapter, Source(queue))).receive(9, 1)) == ["fits"]

    kit.run(body())


def test_one_bad_call_among_concurrent_ones_fails_alone(kit):
    """Concurrent calls share a transaction; what fails in it is undone and repeated without the guilty one."""

    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            bad = kit.message(queue, "bad")
            bad.body = type("Odd", (), {"__len__": lambda self: 1})()
            calls = [adapter.publish([kit.message(queue, str(n))]) for n in range(20)]
            calls.insert(10, adapter.publish([bad]))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [n for n, result in enumerate(results) if result != [None]] == [10]
            consumer = await kit.consumer(adapter, Source(queue))
            assert [str(n) for n in range(20)] == kit.texts(await consumer.receive(50, 1))

    kit.run(body())


def test_a_delay_is_never_early_and_wakes_the_waiting_consumer_when_due(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            consumer = await kit.consumer(adapter, Source(queue))
            waiting = asyncio.create_task(consumer.receive(1, 10))
            loop = asyncio.get_running_loop()
            start = loop.time()
            await kit.publish(adapter, kit.message(queue, "late", delay=0.3))
            (received,) = await waiting
            assert 0.3 <= loop.time() - start < 3
            await consumer.settle([Nack(received, delay=0.2)])
            start = loop.time()
            (received,) = await consumer.receive(1, 10)
            assert 0.19 <= loop.time() - start < 3
            assert received.deliveries == 2

    kit.run(body())


def test_delays_and_waits_follow_the_injected_clock(kit):
    async def body():
        queue, clock = kit.queue(), kit.Clock()
        async with kit.adapter(queue, clock=clock) as adapter:
            await kit.publish(adapter, kit.message(queue, "tomorrow", delay=86_400))
            consumer = await kit.consumer(adapter, Source(queue))
            waiting = asyncio.create_task(consumer.receive(1, 100_000))
            await kit.until(lambda: clock.next_due)
            assert clock.now() + 86_400 == clock.next_due
            assert clock.now() + 86_400 == (await adapter.stats(Source(queue))).next_due
            await clock.advance(86_399)
            assert not waiting.done()
            await clock.advance(1)
            assert kit.texts(await waiting) == ["tomorrow"]
            await kit.ack(consumer, await waiting)

            idle = asyncio.create_task(consumer.receive(1, 60))
            await kit.until(lambda: clock.next_due)
            await clock.advance(60)
            assert await idle == []

    kit.run(body())


def test_a_lease_that_ends_gives_the_message_to_another_and_protects_it_from_the_old_holder(kit):
    async def body():
        queue, clock = kit.queue(), kit.Clock()
        source = Source(queue)
        async with kit.adapter(queue, clock=clock) as adapter:
            await kit.publish(adapter, kit.message(queue, "x"), kit.message(queue, "y"))
            slow = await kit.consumer(adapter, source, lease=10)
            fast = await kit.consumer(adapter, source, lease=10)
            old, kept = await slow.receive(2, 1)
            await clock.advance(9)
            assert await slow.extend([kept], 10) == [None]
            await clock.advance(1)
            (new,) = await fast.receive(2, 1)
            assert (new.body, new.deliveries) == (b"x", 2)
            for outcome in (Ack(old), Nack(old), Nack(old, delay=5), DeadLetter(old, {"a": "b"})):
                (error,) = await slow.settle([outcome])
                assert isinstance(error, LeaseLost)
            (error,) = await slow.extend([old], 10)
            assert isinstance(error, LeaseLost)
            assert [*await fast.settle([Ack(new)]), *await slow.settle([Ack(kept)])] == [None, None]
            assert await figures(adapter, source) == (0, 0, 0)

    kit.run(body())


def test_the_same_consumer_cannot_settle_a_former_hand_over(kit):
    async def body():
        queue, clock = kit.queue(), kit.Clock()
        async with kit.adapter(queue, clock=clock) as adapter:
            await kit.publish(adapter, kit.message(queue, "x"))
            consumer = await kit.consumer(adapter, Source(queue), lease=10)
            (old,) = await consumer.receive(1, 1)
            await clock.advance(10)
            (new,) = await consumer.receive(1, 1)
            assert isinstance((await consumer.settle([Ack(old)]))[0], LeaseLost)
            assert await consumer.settle([Ack(new)]) == [None]

    kit.run(body())


def test_an_extension_and_a_settlement_in_one_transaction_go_together(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n)) for n in range(50)))
            consumer = await kit.consumer(adapter, Source(queue))
            received = await consumer.receive(50, 1)
            extended, settled = await asyncio.gather(
                consumer.extend(received, 60), consumer.settle([Ack(message) for message in received])
            )
            assert [None] * 50 == extended == settled

    kit.run(body())


def test_settling_twice_is_an_error_and_harmless(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, kit.message(queue, "x"), kit.message(queue, "y"))
            consumer = await kit.consumer(adapter, Source(queue))
            x, y = await consumer.receive(2, 1)
            first, second, third = await consumer.settle([Ack(x), Ack(x), Nack(y)])
            assert first is None
            assert isinstance(second, LeaseLost)
            assert third is None
            assert isinstance((await consumer.settle([Nack(y)]))[0], LeaseLost)
            assert kit.texts(await consumer.receive(2, 1)) == ["y"]

    kit.run(body())


def test_only_counted_deliveries_count(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, kit.message(queue, "x"))
            consumer = await kit.consumer(adapter, Source(queue))
            for counted, deliveries in ((False, 1), (True, 1), (True, 2), (False, 3), (True, 3)):
                (received,) = await consumer.receive(1, 1)
                assert deliveries == received.deliveries
                await consumer.settle([Nack(received, counted=counted)])
            await consumer.receive(1, 1)
            await consumer.aclose()
            (received,) = await (await kit.consumer(adapter, Source(queue))).receive(1, 1)
            assert received.deliveries == 4

    kit.run(body())


def test_no_more_than_prefetch_is_held_and_settling_makes_room(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n)) for n in range(5)))
            consumer = await kit.consumer(adapter, Source(queue), prefetch=3)
            received = [*await consumer.receive(2, 1), *await consumer.receive(9, 1)]
            assert kit.texts(received) == ["0", "1", "2"]
            assert await consumer.receive(9, 0.05) == []
            waiting = asyncio.create_task(consumer.receive(9, 10))
            await asyncio.sleep(0)
            await kit.ack(consumer, received[:1])
            assert kit.texts(await waiting) == ["3"]

    kit.run(body())


def test_a_cancelled_receive_loses_nothing(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n)) for n in range(30)))
            consumer = await kit.consumer(adapter, Source(queue), prefetch=100)
            seen: list[str] = []
            for turns in range(30):
                call = asyncio.create_task(consumer.receive(1 + turns % 3, 1))
                for _ in range(turns % 4):
                    await asyncio.sleep(0)
                call.cancel()
                with suppress(asyncio.CancelledError):
                    seen += kit.texts(await call)
            while received := await consumer.receive(7, 0.05):
                assert len(received) <= 7
                seen += kit.texts(received)
            assert [str(n) for n in range(30)] == seen

    kit.run(body())


def test_what_a_cancelled_receive_got_goes_back_at_close(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, kit.message(queue, "x"))
            consumer = await kit.consumer(adapter, Source(queue))
            call = asyncio.create_task(consumer.receive(1, 1))
            await asyncio.sleep(0)
            call.cancel()
            await consumer.aclose()
            (received,) = await (await kit.consumer(adapter, Source(queue))).receive(1, 1)
            assert received.deliveries == 1

    kit.run(body())


def test_cancelled_publishes_leave_the_adapter_usable(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            calls = [asyncio.create_task(adapter.publish([kit.message(queue, str(n))])) for n in range(20)]
            await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            consumer = await kit.consumer(adapter, Source(queue))
            stored = kit.texts(await consumer.receive(50, 1))
            assert {str(n) for n in range(1, 20, 2)} <= set(stored)

    kit.run(body())


def test_closing_a_consumer_gives_back_at_once_and_wakes_another(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter, kit.adapter() as other:
            await kit.publish(adapter, *(kit.message(queue, str(n)) for n in range(3)))
            leaving = await kit.consumer(adapter, Source(queue), lease=3600)
            await leaving.receive(2, 1)
            staying = await kit.consumer(other, Source(queue))
            assert kit.texts(await staying.receive(9, 1)) == ["2"]
            waiting = asyncio.create_task(staying.receive(9, 10))
            await asyncio.sleep(0)
            await leaving.aclose()
            received = await waiting
            assert [(m.body.decode(), m.deliveries) for m in received] == [("0", 1), ("1", 1)]

    kit.run(body())


def test_replay_by_position_is_refused_by_name(kit):
    async def body():
        async with kit.adapter(kit.queue()) as adapter:
            with pytest.raises(UnsupportedFeature, match="replay"):
                await kit.consumer(adapter, Source(kit.queue()), start="earliest")

    kit.run(body())


async def figures(adapter, source):
    stats = await adapter.stats(source)
    return stats.ready, stats.in_flight, stats.delayed


def test_a_batch_read_at_once_is_what_was_stored(kit):
    """Bodies of any bytes and sizes, odd keys and headers: each message gets its own back."""
    bodies = [b"", b"\x00", b"a\x00b\xff\xfe", "ü".encode(), b"\xc3", bytes(range(256)) * 300, b"x" * 32_768, b"end"]
    keys = [None, "k", "\x00", "Schlüssel", '"quoted"', None, "\n", "\U0001f4a1"]

    async def test() -> None:
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            sent = [
                Outgoing(source.address, body, {ID: f"{number}", "x": f"ä\x00{key}"}, f"{number}", key)
                for number, (body, key) in enumerate(zip(bodies, keys, strict=True))
            ]
            await kit.publish(adapter, *sent)
            consumer = await kit.consumer(adapter, source)
            received = await consumer.receive(100, 1)

            assert [(m.body, m.headers, m.key) for m in received] == [(m.body, m.headers, m.key) for m in sent]
            await kit.ack(consumer, received)

    kit.run(test())
