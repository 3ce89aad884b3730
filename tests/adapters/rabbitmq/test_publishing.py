"""A publish result is that message's own."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from msgbus.adapter import ID, Address, Kind, Outgoing, Provision, Source
from msgbus.errors import (
    BrokerUnavailable,
    ConfirmLost,
    MessageTooLarge,
    NotSent,
    PublishRejected,
    Unroutable,
)
from tests.adapters.rabbitmq.conftest import eventually, persist, receive, subscribe, take


async def test_unroutable_is_told_to_the_message_it_is_about(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        nowhere = Address(Kind.QUEUE, rig.name())
        batch = [rig.message(nowhere if i in (3, 7) else source, str(i)) for i in range(10)]

        results = await adapter.publish(batch)

        assert [i for i, error in enumerate(results) if error is not None] == [3, 7]
        assert all(isinstance(results[i], Unroutable) and nowhere.name in str(results[i]) for i in (3, 7))


async def test_unroutable_with_the_same_id_elsewhere(rig):
    """The same id sent to two queues, of which one does not exist: the right one fails."""
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        nowhere = Address(Kind.QUEUE, rig.name())

        results = await adapter.publish([rig.message(source, "a"), rig.message(nowhere, "a"), rig.message(source, "a")])

        assert [None, Unroutable, None] == [error and type(error) for error in results]


async def test_a_topic_without_subscribers_takes_messages(rig):
    async with rig.adapter(rig.topic()) as adapter:
        assert await adapter.publish([rig.message(Address(Kind.TOPIC, rig.name("t")), "a")]) == [None]


@pytest.mark.parametrize("provision", [Provision.SKIP, Provision.VERIFY])
async def test_a_missing_exchange_fails_its_own_messages_only(rig, provision):
    source = rig.queue()
    async with rig.adapter(source):
        pass
    async with rig.adapter(provision=provision) as adapter:
        lost = Address(Kind.TOPIC, rig.name("t"), native={"exchange": rig.name("x")})
        batch = [rig.message(source, "a"), rig.message(lost, "b"), rig.message(source, "c")]

        first = await adapter.publish(batch)
        assert isinstance(first[1], Unroutable)
        assert all(error is None or isinstance(error, ConfirmLost) for error in (first[0], first[2]))
        results = await persist(adapter, [batch[0], batch[2]])

        assert results == [None, None]


async def test_a_full_queue_rejects_the_right_message(rig):
    limited = rig.queue(native={"arguments": {"x-max-length": 3, "x-overflow": "reject-publish"}})
    source = rig.queue()
    async with rig.adapter(limited, source) as adapter:
        for number in range(20):  # a quorum queue says no a little late
            (error,) = await adapter.publish([rig.message(limited, str(number))])
            if error is not None:
                break

        results = await adapter.publish([rig.message(source, "x"), rig.message(limited, "y"), rig.message(source, "z")])

        assert isinstance(error, PublishRejected)
        assert [None, PublishRejected, None] == [error and type(error) for error in results]


async def test_a_refused_message_never_appears(rig):
    limited = rig.queue(
        native={"queue_type": "classic", "arguments": {"x-max-length": 1, "x-overflow": "reject-publish"}}
    )
    async with rig.adapter(limited) as adapter:
        results = [(await adapter.publish([rig.message(limited, str(i))]))[0] for i in range(3)]
        confirmed = [str(i) for i, error in enumerate(results) if error is None]

        assert confirmed
        assert any(results)
        assert confirmed == await take(await subscribe(adapter, limited), len(confirmed))


async def test_a_late_confirm_confirms_nothing_else(rig):
    """A publish that was given up does not lend its confirm to the next one."""
    source, nowhere = rig.queue(), Source(Address(Kind.QUEUE, rig.name()))
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "warm")
        abandoned = asyncio.ensure_future(adapter.publish([rig.message(source, "abandoned")]))
        await asyncio.sleep(0)  # it is written, and no confirm can have come
        abandoned.cancel()

        results = await adapter.publish([rig.message(nowhere, "next")])

        assert abandoned.cancelled()
        assert isinstance(results[0], Unroutable)
        assert sorted(await take(await subscribe(adapter, source), 2)) == ["abandoned", "warm"]


async def test_sizes(rig):
    source = rig.queue()
    async with rig.adapter(source, options="?max_body=300000") as adapter:
        bodies = [b"", b"x", bytes(range(256)), secrets.token_bytes(131_064), secrets.token_bytes(300_000)]
        batch = [Outgoing(source.address, body, {ID: str(i)}, str(i)) for i, body in enumerate(bodies)]

        results = await adapter.publish([*batch, Outgoing(source.address, b"x" * 300_001, {ID: "6"}, "6")])
        got = await receive(await subscribe(adapter, source), len(bodies))

        assert [None] * len(bodies) == list(results[:-1])
        assert isinstance(results[-1], MessageTooLarge)
        assert (results[-1].size, results[-1].limit) == (300_001, 300_000)
        assert bodies == [message.body for message in got]


async def test_more_than_the_broker_takes_is_refused(rig):
    source = rig.queue(native={"queue_type": "classic"})
    async with rig.adapter(source, options="?max_body=200000000") as adapter:
        big = Outgoing(source.address, bytes(140_000_000), {ID: "big"}, "big")

        (error,) = await adapter.publish([big])

        assert isinstance(error, PublishRejected)
        assert "larger than" in str(error)
        await rig.publish(adapter, source, "after")


async def test_headers_are_carried_unchanged(rig):
    source = rig.queue()
    long = "é" * 200  # 400 bytes: no property takes that
    headers = {
        ID: long,
        "ce-type": "",
        "ce-source": "a/b?c=%20",
        "ce-correlationid": "c",
        "msgbus-reply-to": "r",
        "content-type": "application/json; charset=utf-8",
        "ce-time": "2026-01-02T03:04:05.678901Z",
        "x": "",
        "X-Name.with_-": "'\"\\ \u2028 日本 🎉",
    }
    async with rig.adapter(source) as adapter:
        await adapter.publish([Outgoing(source.address, b"", headers, long), Outgoing(source.address, b"", {}, "")])

        got = await receive(await subscribe(adapter, source), 2)

        assert [headers, {}] == [message.headers for message in got]


async def test_a_header_that_does_not_fit_fails_its_message_alone(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        bad = Outgoing(source.address, b"", {ID: "bad", "name" * 100: "x"}, "bad")
        half = Outgoing(source.address, b"", {ID: "half", "x": "\ud800"}, "half")
        huge = Outgoing(source.address, b"", {ID: "huge", "x": "x" * 200_000}, "huge")

        results = await adapter.publish([rig.message(source, "a"), bad, half, huge, rig.message(source, "b")])

        assert [None, PublishRejected, PublishRejected, PublishRejected, None] == [e and type(e) for e in results]


async def test_publishing_waits_while_the_broker_blocks(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        subscription = await subscribe(adapter, source)
        await rig.publish(adapter, source, "before")
        await asyncio.to_thread(rig.broker.raise_memory_alarm)
        try:
            publishing = asyncio.ensure_future(adapter.publish([rig.message(source, "during")]))
            await eventually(lambda: not adapter.health.ok, "health tells of the alarm")
            assert "blocked" in adapter.health.reason
            assert await take(subscription, 1) == ["before"]  # consuming goes on
            assert not publishing.done()
        finally:
            await asyncio.to_thread(rig.broker.clear_memory_alarm)

        assert await publishing == [None]
        assert await take(subscription, 1) == ["during"]
        assert adapter.health.ok


async def test_a_closed_adapter_refuses(rig):
    async with rig.adapter() as adapter:
        await adapter.aclose()
        await adapter.aclose()

        with pytest.raises(Exception, match="closed"):
            await adapter.publish([rig.message(Address(Kind.QUEUE, "q"), "a")])


async def test_a_lost_connection_is_said_to_be_retryable(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "warm")
        batch = [rig.message(source, str(i)) for i in range(200)]
        publishing = asyncio.ensure_future(adapter.publish(batch))
        await asyncio.sleep(0)
        adapter._publishing.require().abort(ConnectionResetError("cut"))

        results = await publishing

        assert all(error is None or error.retryable for error in results)
        with pytest.raises(BrokerUnavailable, match="cut"):
            await adapter.publish(batch)
        assert await persist(adapter, batch) == [None] * 200


async def test_more_than_the_window_waits_and_keeps_order(rig):
    source = rig.queue()
    texts = [str(i) for i in range(5000)]
    async with rig.adapter(source) as adapter:
        publishing = asyncio.ensure_future(adapter.publish([rig.message(source, text) for text in texts]))
        subscription = await subscribe(adapter, source, prefetch=1000)
        got = []
        while len(got) < len(texts):
            assert adapter._publisher._line is None or len(adapter._publisher._line._pending) <= 2000
            got += await take(subscription, 1000)

        assert await publishing == [None] * len(texts)
        assert got == texts


async def test_a_connection_lost_in_the_middle_of_a_batch(rig):
    """What was confirmed is confirmed, what was written is unknown, what was not written is certain."""
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "warm")
        publishing = asyncio.ensure_future(adapter.publish([rig.message(source, str(i)) for i in range(6000)]))
        await eventually(lambda: adapter._publisher._line._tag > 2500, "some are confirmed, and more are written")
        adapter._publishing.require().abort(ConnectionResetError("cut"))

        results = await publishing

        kinds = [type(error) for error in results if error is not None]
        assert results[0] is None
        assert kinds[0] is ConfirmLost
        assert isinstance(results[-1], NotSent)
        assert all(error.retryable for error in results if error is not None)


async def test_large_messages_wait_for_the_socket(rig, monkeypatch):
    source = rig.queue(native={"queue_type": "classic"})
    body = secrets.token_bytes(1_000_000)
    async with rig.adapter(source) as adapter:
        batch = [Outgoing(source.address, body, {ID: str(i)}, str(i)) for i in range(30)]
        wire, pauses = adapter._publishing.require(), []
        monkeypatch.setattr(wire, "pause_writing", lambda pause=wire.pause_writing: (pauses.append(1), pause()))

        assert await adapter.publish(batch) == [None] * 30
        assert pauses
        got = await receive(await subscribe(adapter, source), 30)
        assert all(message.body == body for message in got)
