"""Publishing: confirmed or raised, each message with its own result, retried until the timeout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from msgbus import Bus, Delivery, Message, Queue, TestBus, Topic
from msgbus._encoder import Encoder
from msgbus._publisher import Publisher
from msgbus._time import SystemClock
from msgbus.adapter import Adapter, AdapterConfig, BusURL, Capabilities, Outgoing, Stats, Subscription, Topology
from msgbus.errors import (
    BrokerUnavailable,
    ChannelError,
    ClosedError,
    ConfirmLost,
    EncodeError,
    MessageTooLarge,
    NotSent,
    PublishError,
    PublishFailed,
    PublishRejected,
    PublishTimeout,
    UnsupportedFeature,
)
from tests.core.support import Order, run

orders = Queue("orders", Order)
placed = Topic("placed", Order)

Script = list[Any]


class Scripted(Adapter):
    """A broker whose answers are written down: for each publish call an exception, or a result per message."""

    name = "scripted"
    capabilities = Capabilities(max_body=100, max_delay=60.0, max_batch=4, publish_window=2)

    def __init__(self, script: Script | None = None) -> None:
        super().__init__(BusURL("scripted"), AdapterConfig())
        self.script = script or []
        self.batches: list[list[str]] = []

    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        self.batches.append([outgoing.id for outgoing in batch])
        answer = self.script.pop(0) if self.script else None
        if answer == "hang":
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return [answer.get(outgoing.id) for outgoing in batch] if answer else [None] * len(batch)

    async def open(self) -> None: ...
    async def declare(self, topology: Topology) -> None: ...
    async def subscribe(self, source: Any, options: Any) -> Subscription:
        raise NotImplementedError

    async def stats(self, source: Any) -> Stats:
        return Stats()

    async def aclose(self) -> None: ...


def outgoing(id: str, body: bytes = b"x", delay: float = 0.0) -> Outgoing:
    return Outgoing(orders.address(), body, {"ce-id": id}, id, delay=delay)


def publisher(script: Script, timeout: float = 5.0) -> tuple[Publisher, Scripted]:
    adapter = Scripted(script)
    return Publisher(adapter, timeout=timeout, max_body=1 << 30, clock=SystemClock()), adapter


def test_each_message_gets_its_own_result() -> None:
    """One refused message of a batch fails alone."""

    async def main() -> list[Any]:
        publish, _ = publisher([{"2": PublishRejected("full")}])
        return await asyncio.gather(*(publish.publish(outgoing(i)) for i in "123"), return_exceptions=True)

    first, second, third = run(main())

    assert (first, third) == (None, None)
    assert isinstance(second, PublishRejected)


def test_concurrent_publishes_share_batches() -> None:
    """What is published at the same time goes out together, within the adapter's maximum."""

    async def main() -> list[list[str]]:
        publish, adapter = publisher([])
        await asyncio.gather(*(publish.publish(outgoing(i)) for i in "123456"))
        return adapter.batches

    assert run(main()) == [["1", "2", "3", "4"], ["5", "6"]]


def test_an_unreachable_broker_is_tried_again_with_the_same_message() -> None:
    """A lost connection is retried with the same id until the broker confirms."""

    async def main() -> list[list[str]]:
        publish, adapter = publisher([BrokerUnavailable("away"), {"1": ConfirmLost("cut")}])
        await publish.publish(outgoing("1"))
        return adapter.batches

    assert run(main()) == [["1"], ["1"], ["1"]]


def test_only_what_failed_is_tried_again() -> None:
    """Messages of the batch that were confirmed are not published twice."""

    async def main() -> list[list[str]]:
        publish, adapter = publisher([{"2": ConfirmLost("cut")}])
        await asyncio.gather(*(publish.publish(outgoing(i)) for i in "123"))
        return adapter.batches

    assert run(main()) == [["1", "2", "3"], ["2"]]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([BrokerUnavailable("away")] * 99, NotSent),
        ([{"1": ConfirmLost("cut")}] * 99, PublishTimeout),
        ([{"1": ConfirmLost("cut")}, *[BrokerUnavailable("away")] * 99], PublishTimeout),
        ([BrokerUnavailable("away"), "hang"], PublishTimeout),
    ],
)
def test_a_timeout_tells_whether_the_broker_may_have_the_message(script: Script, error: type[Exception]) -> None:
    """NotSent only where no attempt can have reached the broker; else the outcome is unknown."""

    async def main() -> None:
        publish, _ = publisher(script, timeout=0.3)
        with pytest.raises(error, match="0.3 s") as caught:
            await publish.publish(outgoing("1"))
        assert isinstance(caught.value, NotSent) == (error is NotSent)

    run(main())


def test_a_cancelled_caller_does_not_disturb_the_batch() -> None:
    """Cancelling one publish leaves the others of its batch alone."""

    async def main() -> None:
        publish, _ = publisher([])
        tasks = [asyncio.ensure_future(publish.publish(outgoing(i))) for i in "12"]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await tasks[1]
        await publish.aclose()

    run(main())


def test_what_the_adapter_cannot_take_is_refused_before_it_is_sent() -> None:
    """Too large a body and too long a delay are named errors; nothing reaches the broker."""

    async def main() -> None:
        publish, adapter = publisher([])
        with pytest.raises(MessageTooLarge, match="101 bytes, at most 100 are taken"):
            await publish.publish(outgoing("1", b"x" * 101))
        with pytest.raises(UnsupportedFeature, match="a delay of 61 s: its longest is 60 s"):
            await publish.publish(outgoing("1", delay=61))
        await publish.publish(outgoing("2", b"x" * 100, delay=60))
        assert adapter.batches == [["2"]]

    run(main())


def test_publish_many_reports_which_messages_failed() -> None:
    """All but the failed ones are confirmed; the error says which failed and why, also what did not fit."""

    async def messages() -> AsyncIterator[Any]:
        for first in (0, 4, 8):
            yield [
                EncodeError("odd") if n == 1 else outgoing(str(n), b"x" * (101 if n == 6 else 1))
                for n in range(first, min(first + 4, 10))
            ]

    async def main() -> None:
        publish, adapter = publisher([{"3": PublishRejected("full")}])
        with pytest.raises(PublishFailed) as caught:
            await publish.publish_many(messages())
        assert caught.value.total == 10
        assert {n: type(e) for n, e in caught.value.failures.items()} == {
            1: EncodeError,
            3: PublishRejected,
            6: MessageTooLarge,
        }
        assert sorted(i for batch in adapter.batches for i in batch) == list("0234578 9".replace(" ", ""))

    run(main())


def test_publish_many_reports_what_a_closing_adapter_did_not_take() -> None:
    """A batch that met a closed adapter is not counted as published."""

    async def batches() -> AsyncIterator[Any]:
        yield [outgoing("0"), outgoing("1")]
        yield [outgoing("2")]

    async def main() -> None:
        publish, _ = publisher([None, ClosedError("closed")])
        with pytest.raises(PublishFailed) as caught:
            await publish.publish_many(batches())
        assert {n: type(e) for n, e in caught.value.failures.items()} == {2: ClosedError}

    run(main())


def test_what_an_iterable_gave_before_it_failed_is_published() -> None:
    """The iterable's error reaches the caller once the messages before it are confirmed."""

    async def batches() -> AsyncIterator[Any]:
        yield [outgoing("0")]
        raise LookupError("no more")

    async def main() -> None:
        publish, adapter = publisher([{"0": ConfirmLost("cut")}])
        with pytest.raises(LookupError):
            await publish.publish_many(batches())
        assert adapter.batches == [["0"], ["0"]]

    run(main())


def test_the_window_bounds_what_is_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the window is full, publishers wait instead of queueing up."""
    monkeypatch.setattr("msgbus._publisher._WINDOW", 3)

    async def main() -> None:
        publish, adapter = publisher(["hang"], timeout=0.2)
        tasks = [asyncio.ensure_future(publish.publish(outgoing(str(n)))) for n in range(6)]
        await asyncio.sleep(0.05)
        assert sum(map(len, adapter.batches)) == 3
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(e, PublishTimeout) for e in done) == 3

    run(main())


def encode(**options: Any) -> Message:
    outgoing = Encoder("shop", SystemClock())(orders, orders.address(), Order(id="1"), **options)
    return Message.from_wire(outgoing.body, outgoing.headers, outgoing.key)


def test_options_become_metadata() -> None:
    """Key, id, expiry, headers and correlation travel with the message."""
    cause = Message(id="c", body=b"", headers={"traceparent": "00-a-b-01"})
    message = encode(key="k", id="7", expires=60, headers={"x": "y"}, cause=cause)

    assert (message.id, message.key, message.type, message.source) == ("7", "k", "Order", "shop")
    assert (message.causation_id, message.correlation_id) == ("c", "c")
    assert dict(message.headers) == {"x": "y", "traceparent": "00-a-b-01"}
    assert message.expires is not None
    assert timedelta(seconds=58) < message.expires - datetime.now(UTC) <= timedelta(seconds=60)
    assert encode(correlation_id="q", cause=cause).correlation_id == "q"


@pytest.mark.parametrize(
    "options",
    [
        {"id": ""},
        {"id": "x" * 513},
        {"id": 7},
        {"key": "a\nb"},
        {"correlation_id": "\x00"},
        {"headers": {"ce-id": "1"}},
        {"expires": datetime(2026, 1, 1)},  # noqa: DTZ001
    ],
)
def test_options_that_cannot_travel_are_refused(options: dict[str, Any]) -> None:
    """A bad option is an EncodeError that names it; nothing is sent."""
    with pytest.raises(EncodeError):
        encode(**options)


@pytest.mark.parametrize("options", [{"delay": -1}, {"expires": -1}, {"delay": float("nan")}])
def test_impossible_times_are_refused(options: dict[str, Any]) -> None:
    """Times below zero are refused by name."""
    with pytest.raises(ValueError, match="must be 0 or more seconds"):
        encode(**options)


def test_verbs_take_their_own_kind_of_channel() -> None:
    """Send is for queues, publish for topics; a mix-up, a pattern and a closed bus are named errors."""
    bus = Bus("memory://")

    async def main() -> None:
        async with TestBus(bus) as t:
            with pytest.raises(ChannelError, match="bus.send takes a Queue"):
                await bus.send(placed, Order(id="1"))  # type: ignore[arg-type]
            with pytest.raises(ChannelError, match="bus.publish takes a Topic"):
                await bus.publish(orders, Order(id="1"))  # type: ignore[arg-type]
            with pytest.raises(ChannelError, match="is a pattern"):
                await bus.publish(Topic("order.*", Order), Order(id="1"))
            await bus.send(orders, Order(id="1"))
            assert len(t.sent(orders)) == 1
        with pytest.raises(ClosedError, match="not open"):
            await bus.send(orders, Order(id="1"))

    run(main())


def test_a_handler_can_pass_its_cause_on() -> None:
    """cause=delivery links a message to the one that made it."""
    bus = Bus("memory://")

    @bus.on(orders)
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        await bus.publish(placed, order, cause=delivery)

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"), id="first")
            await t.drain()
            (message,) = t.messages(placed)
            assert (message.causation_id, message.correlation_id) == ("first", "first")

    run(main())


def test_send_many_takes_plain_and_asynchronous_iterables() -> None:
    """Both kinds are pipelined; the count is returned."""
    bus = Bus("memory://")

    async def later() -> AsyncIterator[Order]:
        for n in range(3):
            yield Order(id=str(n))

    async def main() -> None:
        async with bus:
            assert await bus.send_many(orders, [Order(id="1")] * 2500) == 2500
            assert await bus.send_many(orders, later()) == 3
            assert await bus.send_many(orders, []) == 0
            assert await bus.publish_many(placed, [Order(id="1")]) == 1
            assert (await bus.stats(orders)).ready == 2503
            with pytest.raises(PublishFailed) as caught:
                await bus.send_many(orders, [Order(id="1"), "odd"])  # type: ignore[list-item]
            assert list(caught.value.failures) == [1]

    run(main())
