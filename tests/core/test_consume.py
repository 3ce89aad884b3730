"""The consume pipeline on the memory broker: what becomes of messages, in virtual time."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from typing import Any

import pytest
from pydantic import BaseModel

from msgbus import (
    BatchFailed,
    Bus,
    DeadReason,
    Delivery,
    Message,
    Queue,
    Reject,
    RequestReply,
    Retry,
    RetryAfter,
    TestBus,
    Topic,
)
from msgbus.adapter import DeadLetter, Nack, Outgoing, Received, Subscription
from msgbus.errors import AlreadySettled, DecodeError, HandlerError, LeaseLost, MessageTooLarge, MsgbusError
from tests.core.support import Order, eventually, run

orders = Queue("orders", Order)
keyed = Queue("keyed", Order, key="customer")
placed = Topic("placed", Order)


def make_bus(**options: Any) -> Bus:
    return Bus("memory://", **options)


def test_a_message_is_handled_once_and_gone() -> None:
    """The ordinary case: sent, handled by async and plain handlers, acked."""
    bus, seen = make_bus(), []

    @bus.on(orders)
    async def handle(order: Order) -> None:
        seen.append(order.id)

    @bus.on(placed, group="plain")
    def plain(order: Order) -> None:
        seen.append((order.id, threading.current_thread() is not threading.main_thread()))

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await bus.publish(placed, Order(id="2"))
            await t.drain()
            stats = await bus.stats(orders)
            assert (stats.ready, stats.in_flight, stats.dead) == (0, 0, 0)
            assert t.sent(orders) == [Order(id="1")]
            assert t.messages(placed)[0].type == "Order"

    run(main())

    assert seen == ["1", ("2", True)]


def test_attempts_count_up_to_the_policy_and_end_dead_lettered() -> None:
    """The handler sees attempts 1, 2, 3 and no more; the dead letter says so."""
    bus, attempts = make_bus(), []

    @bus.on(orders, retry=Retry(attempts=3))
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        attempts.append(delivery.attempt)
        raise RuntimeError("always")

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await t.drain()
            (dead,) = t.dead_letters(orders)
            assert (dead.report.reason, dead.report.attempts, dead.report.detail) == (DeadReason.FAILED, 3, "always")
            assert "RuntimeError" in dead.report.traceback
            assert Order.model_validate_json(dead.message.body) == Order(id="1")

    run(main())

    assert attempts == [1, 2, 3]


def test_signals_and_fatal_exceptions_decide() -> None:
    """Reject and fatal exceptions dead-letter at once; RetryAfter waits exactly as long as it says."""
    bus, seen = make_bus(), []

    @bus.on(orders, retry=Retry(attempts=5, fatal=(KeyError,)))
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        seen.append(order.id)
        if order.id == "reject":
            raise Reject("no stock")
        if order.id == "fatal":
            raise KeyError("x")
        if delivery.attempt == 1:
            raise RetryAfter(100)

    async def main() -> None:
        async with TestBus(bus) as t:
            for name in ("reject", "fatal", "later"):
                await bus.send(orders, Order(id=name))
            await t.advance(99)
            assert seen == ["reject", "fatal", "later"]
            await t.advance(2)
            assert seen == ["reject", "fatal", "later", "later"]
            assert [d.report.reason for d in t.dead_letters(orders)] == ["rejected", "fatal"]

    run(main())


def test_garbage_is_dead_lettered_at_once_and_does_not_stop_others() -> None:
    """What cannot be decoded is never retried, keeps its bytes, and the messages behind it flow."""
    bus, seen = make_bus(), []

    @bus.on(orders)
    async def handle(order: Order) -> None:
        seen.append(order.id)

    async def main() -> None:
        async with TestBus(bus) as t:
            await inject(bus, orders, b"\xff garbage")
            await bus.send(orders, Order(id="1"))
            await t.drain()
            (dead,) = t.dead_letters(orders)
            assert (dead.message.body, dead.report.reason) == (b"\xff garbage", DeadReason.UNDECODABLE)

    run(main())

    assert seen == ["1"]


async def inject(bus: Bus, channel: Any, body: bytes, **headers: str) -> None:
    """Publish what somebody would who knows nothing of msgbus."""
    connection, source = await bus._open.source(channel, None)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    assert await connection.adapter.publish([Outgoing(source.address, body, names, "")]) == [None]


def test_a_foreign_message_is_handled_like_any_other() -> None:
    """No header is needed."""
    bus, seen = make_bus(), []

    @bus.on(orders)
    async def handle(order: Order, message: Message, delivery: Delivery[Order]) -> None:
        seen.append((order.id, message.id, message.time, delivery.attempt, delivery.channel))

    async def main() -> None:
        async with TestBus(bus) as t:
            await inject(bus, orders, b'{"id": "7"}', x="y")
            await t.drain()

    run(main())

    assert seen == [("7", "", None, 1, "orders")]


class Shipped(BaseModel):
    order: str


def test_types_choose_the_handler_and_unknown_ones_are_not_guessed() -> None:
    """On a union each type goes to its handler; a type nobody takes is dead-lettered, or ignored by option."""
    both = Topic("both", Order | Shipped)
    bus, seen = make_bus(), []

    @bus.on(both, group="all")
    async def placed_(order: Order) -> None:
        seen.append("order")

    @bus.on(both, group="all")
    async def shipped(item: Shipped) -> None:
        seen.append("shipped")

    @bus.on(both, group="some", unknown="ignore")
    async def only(item: Shipped) -> None:
        seen.append("only")

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.publish(both, Order(id="1"))
            await bus.publish(both, Shipped(order="1"))
            connection, source = await bus._open.source(both, "all")
            await connection.adapter.publish([Outgoing(source.address, b"{}", {"ce-type": "Nope"}, "x")])
            await connection.adapter.publish([Outgoing(source.address, b"{}", {}, "y")])
            await t.drain()
            assert [d.report.reason for d in t.dead_letters(both, group="all")] == ["unknown-type"] * 2
            assert t.dead_letters(both, group="some") == []

    run(main())

    assert sorted(seen) == ["only", "order", "shipped"]


def test_expired_messages_are_not_handled() -> None:
    """After its time a message is dead-lettered as expired instead of handled."""
    bus, seen = make_bus(), []

    @bus.on(orders)
    async def handle(order: Order) -> None:
        seen.append(order.id)

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="late"), delay=60, expires=30)
            await bus.send(orders, Order(id="in time"), delay=60, expires=90)
            await t.drain()
            assert [d.report.reason for d in t.dead_letters(orders)] == [DeadReason.EXPIRED]

    run(main())

    assert seen == ["in time"]


def test_keys_are_handled_in_order_even_when_one_fails() -> None:
    """Messages of a key never overtake each other, retries included; other keys go on meanwhile."""
    bus, seen = make_bus(concurrency=8), defaultdict(list)

    @bus.on(keyed, retry=Retry(attempts=5, base=10))
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        await asyncio.sleep(0)
        if order.id == "2" and delivery.attempt < 3:
            raise RuntimeError("not yet")
        seen[order.customer].append(order.id)

    async def main() -> None:
        async with TestBus(bus) as t:
            for n in range(6):
                for customer in "abc":
                    await bus.send(keyed, Order(id=str(n), customer=customer))
            await t.drain()

    run(main())

    assert dict(seen) == {customer: [str(n) for n in range(6)] for customer in "abc"}


@pytest.mark.parametrize("park", [False, True])
def test_a_dead_letter_frees_its_key_or_parks_it(park: bool) -> None:
    """By default a key goes on after a dead letter; with park= it waits for the replay."""
    bus, seen, fixed = make_bus(), [], False

    @bus.on(keyed, retry=Retry(attempts=1), park=park)
    async def handle(order: Order) -> None:
        if order.id == "bad" and not fixed:
            raise RuntimeError("bad")
        seen.append(order.id)

    async def main() -> None:
        nonlocal fixed
        async with TestBus(bus) as t:
            for name in ("1", "bad", "2", "3"):
                await bus.send(keyed, Order(id=name))
            await t.drain()
            assert seen == (["1"] if park else ["1", "2", "3"])
            fixed = True
            await (await bus.dead_letters(keyed)).replay()
            await t.drain()

    run(main())

    assert seen == (["1", "bad", "2", "3"] if park else ["1", "2", "3", "bad"])


class LosesItsConnection(Subscription):
    """Loses all that it handed out when it is asked to store the first dead letter; the broker hands that out again."""

    def __init__(self, inner: Subscription) -> None:
        self.inner = inner
        self.address = inner.address
        self.out: list[Received] = []
        self.lost: list[Received] = []

    async def receive(self, limit: int, wait: float) -> Any:
        got = await self.inner.receive(limit, wait)
        self.out += got
        return got

    async def settle(self, outcomes: Any) -> Any:
        if not self.lost and any(isinstance(outcome, DeadLetter) for outcome in outcomes):
            self.lost = self.out.copy()
            await self.inner.settle([Nack(received, counted=False) for received in self.lost])
        if any(outcome.received in self.lost for outcome in outcomes):
            return [LeaseLost("the connection is lost")] * len(outcomes)
        return await self.inner.settle(outcomes)

    async def extend(self, received: Any, seconds: float) -> Any:
        return await self.inner.extend(received, seconds)

    async def aclose(self) -> None:
        await self.inner.aclose()


def test_a_dead_letter_that_got_lost_frees_nothing() -> None:
    """Its message comes again; those behind it, which are lost with the same connection, must not run before it."""
    bus, seen = Bus("memory://lost", concurrency=8), []

    @bus.on(keyed, retry=Retry(attempts=1))
    async def handle(order: Order) -> None:
        seen.append(order.id)
        if order.id == "bad":
            raise RuntimeError("bad")

    async def main() -> None:
        async with bus:
            (connection,) = bus._open._connections
            subscribe = connection.adapter.subscribe

            async def subscribed(*args: Any) -> Subscription:
                return LosesItsConnection(await subscribe(*args))

            vars(connection.adapter)["subscribe"] = subscribed
            await bus.send_many(keyed, [Order(id=name) for name in ("bad", "2", "3")])
            await bus.start()
            await eventually(lambda: seen[-1:] == ["3"])

    run(main())

    assert seen == ["bad", "bad", "2", "3"]


class LosesALease(LosesItsConnection):
    """Loses the lease of the second message that it holds, once: it comes again at once."""

    async def settle(self, outcomes: Any) -> Any:
        return [
            LeaseLost("it ended") if outcome.received in self.lost else (await self.inner.settle([outcome]))[0]
            for outcome in outcomes
        ]

    async def extend(self, received: Any, seconds: float) -> Any:
        if len(received) == 3 and not self.lost:
            self.lost = [received[1]]
            await self.inner.settle([Nack(received[1], counted=False)])
            return [None, LeaseLost("it ended"), None]
        return await self.inner.extend(received, seconds)


def test_what_waits_behind_a_lost_lease_does_not_run_before_it() -> None:
    """A message that lost its lease in its lane comes again, and what was received after it is handled after it."""
    bus, seen, go = Bus("memory://lease", concurrency=8, lease=1.5), [], asyncio.Event()

    @bus.on(keyed)
    async def handle(order: Order) -> None:
        seen.append(order.id)
        await go.wait()

    async def main() -> None:
        subscriptions = []
        async with bus:
            (connection,) = bus._open._connections
            subscribe = connection.adapter.subscribe

            async def subscribed(*args: Any) -> Subscription:
                subscriptions.append(LosesALease(await subscribe(*args)))
                return subscriptions[0]

            vars(connection.adapter)["subscribe"] = subscribed
            await bus.send_many(keyed, [Order(id=name) for name in ("1", "2", "3")])
            await bus.start()
            await eventually(lambda: subscriptions[0].lost)
            await eventually(lambda: len(subscriptions[0].out) >= 4)
            go.set()
            await eventually(lambda: len(seen) == 3)

    run(main())

    assert seen == ["1", "2", "3"]


class Vouches(LosesItsConnection):
    """Vouches for all that it hands out, whose headers cannot be read."""

    async def receive(self, limit: int, wait: float) -> Any:
        got = await self.inner.receive(limit, wait)
        for received in got:
            received.plain, received.headers = True, None
        return got


@pytest.mark.parametrize("batch", [None, 10])
def test_what_an_adapter_vouches_for_is_handled_unread(batch: int | None) -> None:
    """Nobody asks for the headers of a message that has no attempts behind it and does not expire."""
    bus, seen = Bus("memory://vouched"), []

    async def main() -> None:
        if batch:
            bus.on(orders, batch=batch)(seen_all)
        else:
            bus.on(orders)(seen_one)
        async with bus:
            (connection,) = bus._open._connections
            subscribe = connection.adapter.subscribe

            async def subscribed(*args: Any) -> Subscription:
                return Vouches(await subscribe(*args))

            vars(connection.adapter)["subscribe"] = subscribed
            await bus.send_many(orders, [Order(id=str(number)) for number in range(3)])
            await bus.start()
            await eventually(lambda: len(seen) == 3)
            await eventually(lambda: bus._open.receivers["orders"].held == 0)

    async def seen_one(order: Order) -> None:
        seen.append(order.id)

    async def seen_all(batch: list[Order]) -> None:
        seen.extend(order.id for order in batch)

    run(main())

    assert seen == ["0", "1", "2"]


def test_an_overlong_handler_is_cancelled_and_its_attempt_counts() -> None:
    """timeout= cancels an async handler; the message is tried again by the policy."""
    bus, seen, cancelled = make_bus(), [], []

    @bus.on(orders, timeout=5, retry=Retry(attempts=2, base=1))
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        seen.append(delivery.attempt)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(delivery.attempt)
            raise

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await t.advance(4)
            assert (seen, cancelled) == ([1], [])
            await t.advance(20)
            (dead,) = t.dead_letters(orders)
            assert dead.report.exception == "TimeoutError"
            assert "longer than 5 s" in dead.report.detail

    run(main())

    assert (seen, cancelled) == ([1, 2], [1, 2])


def test_a_handler_that_swallows_its_cancellation_does_not_break_the_worker() -> None:
    """A handler that returns although it was cancelled has handled its message, and the worker goes on."""
    bus, seen = make_bus(concurrency=1), []

    @bus.on(orders, timeout=5)
    async def handle(order: Order) -> None:
        seen.append(order.id)
        if order.id == "stubborn":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="stubborn"))
            await bus.send(orders, Order(id="next"))
            await t.advance(10)
            await t.drain()
            assert t.dead_letters(orders) == []

    run(main())

    assert seen == ["stubborn", "next"]


def test_a_handler_that_raises_cancelled_error_itself_has_failed() -> None:
    """A CancelledError that is not the bus's doing is a failure like any other."""
    bus, seen = make_bus(), []

    @bus.on(orders, retry=Retry(attempts=2))
    async def handle(order: Order) -> None:
        seen.append(order.id)
        raise asyncio.CancelledError

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await t.drain()
            assert len(t.dead_letters(orders)) == 1

    run(main())

    assert seen == ["1", "1"]


def test_long_handlers_keep_their_lease() -> None:
    """A handler that runs many leases long is not delivered twice, and neither is what waits behind it."""
    bus, seen, go = make_bus(concurrency=1, lease=30), [], asyncio.Event()

    @bus.on(orders)
    async def handle(order: Order) -> None:
        seen.append(order.id)
        await go.wait()

    async def main() -> None:
        async with TestBus(bus) as t:
            for name in "123":
                await bus.send(orders, Order(id=name))
            await t.advance(300)
            assert seen == ["1"]
            go.set()
            await t.drain()

    run(main())

    assert seen == ["1", "2", "3"]


def test_batches_fail_item_by_item() -> None:
    """A batch handler gets lists; what it names in BatchFailed is retried or dead-lettered, the rest is done."""
    bus, batches = make_bus(), []

    @bus.on(orders, batch=4, retry=Retry(attempts=2))
    async def handle(batch: list[Order]) -> None:
        batches.append([order.id for order in batch])
        failed: dict[int, BaseException] = {}
        for i, order in enumerate(batch):
            if order.id == "bad":
                failed[i] = ValueError("bad")
            if order.id == "reject":
                failed[i] = Reject("no")
        if failed:
            raise BatchFailed(failed)

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send_many(orders, [Order(id=i) for i in ("1", "bad", "reject", "2", "3")])
            await inject(bus, orders, b"garbage")
            await t.drain()
            reasons = sorted(d.report.reason for d in t.dead_letters(orders))
            assert reasons == ["failed", "rejected", "undecodable"]

    run(main())

    assert batches[0] == ["1", "bad", "reject", "2"]
    assert batches[-1] == ["bad"]
    assert sorted(i for batch in batches for i in batch) == ["1", "2", "3", "bad", "bad", "reject"]


@pytest.mark.parametrize("error", [RuntimeError("all"), BatchFailed({99: ValueError("x")})])
def test_a_batch_that_raises_otherwise_fails_as_a_whole(error: Exception) -> None:
    """Any other exception, or a BatchFailed that names an item that is not there, fails every item."""
    bus = make_bus()

    @bus.on(orders, batch=10, retry=Retry(attempts=1))
    def handle(batch: list[Delivery[Order]]) -> None:
        assert batch[0].payload.id == "1"
        raise error

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send_many(orders, [Order(id="1"), Order(id="2")])
            await t.drain()
            assert len(t.dead_letters(orders)) == 2

    run(main())


def test_deliveries_can_be_settled_early_but_only_once() -> None:
    """ack, nack and reject wait for the broker; settling twice is a named error; the handler's end adds nothing."""
    bus, log = make_bus(), []

    @bus.on(keyed, retry=Retry(attempts=3))
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        log.append((order.id, delivery.attempt))
        if order.id == "ack":
            await delivery.extend(60)
            await delivery.ack()
            with pytest.raises(AlreadySettled):
                await delivery.nack()
            raise RuntimeError("too late to matter")
        if order.id == "nack" and delivery.attempt == 1:
            await delivery.nack(10)
        if order.id == "reject":
            await delivery.reject("no")

    async def main() -> None:
        async with TestBus(bus) as t:
            for name in ("ack", "nack", "reject", "last"):
                await bus.send(keyed, Order(id=name))
            await t.drain()
            assert [d.report.reason for d in t.dead_letters(keyed)] == ["rejected"]

    run(main())

    assert log == [("ack", 1), ("nack", 1), ("nack", 2), ("reject", 1), ("last", 1)]


def test_deliveries_of_a_batch_cannot_settle_themselves() -> None:
    """In a batch the handler's end settles; trying otherwise is an error that says so."""
    bus, errors = make_bus(), []

    @bus.on(orders, batch=2)
    async def handle(batch: list[Delivery[Order]]) -> None:
        with pytest.raises(HandlerError, match="BatchFailed") as caught:
            await batch[0].ack()
        errors.append(caught.value)

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await t.drain()

    run(main())

    assert len(errors) == 1


def test_middleware_wraps_both_sides() -> None:
    """Publish and consume middleware run around the call, outermost first, and can change or refuse."""
    log: list[str] = []

    def publishing(name: str) -> Any:
        async def middleware(message: Message, call_next: Any) -> None:
            log.append(f"{name} before {message.type}")
            await call_next(message)
            log.append(f"{name} after")

        return middleware

    async def consuming(delivery: Delivery[Any], call_next: Any) -> Any:
        log.append(f"consume {delivery.payload.id}")
        if delivery.payload.id == "blocked":
            raise Reject("blocked")
        return await call_next(delivery)

    bus = make_bus(publish_middleware=[publishing("a"), publishing("b")], consume_middleware=[consuming])

    @bus.on(orders)
    async def handle(order: Order) -> None:
        log.append("handled")

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await t.drain()
            await bus.send_many(orders, [Order(id="blocked")])
            await t.drain()
            assert len(t.dead_letters(orders)) == 1

    run(main())

    assert log[:6] == ["a before Order", "b before Order", "b after", "a after", "consume 1", "handled"]
    assert "consume blocked" in log
    assert log.count("handled") == 1


def test_concurrency_is_exact_and_prefetch_bounds_what_is_held() -> None:
    """Never more handlers than concurrency, never more messages held than prefetch."""
    bus = make_bus()
    now = most = held = 0

    @bus.on(orders, concurrency=3, prefetch=7)
    async def handle(order: Order) -> None:
        nonlocal now, most, held
        now += 1
        most = max(most, now)
        held = max(held, bus._open.receivers["orders"].held)
        await asyncio.sleep(0.001)
        now -= 1

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send_many(orders, [Order(id=str(n)) for n in range(100)])
            await t.drain()

    run(main())

    assert (most, held) == (3, 7)


def test_drain_finishes_what_runs_and_gives_the_rest_back_uncounted() -> None:
    """Running handlers finish, waiting messages go back without an attempt, and a new consumer gets them."""
    bus, seen, go = make_bus(concurrency=1), [], asyncio.Event()

    @bus.on(keyed)
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        seen.append((order.id, delivery.attempt))
        await go.wait()

    async def main() -> None:
        async with TestBus(bus):
            for name in "123":
                await bus.send(keyed, Order(id=name))
            await eventually(lambda: seen)
            draining = asyncio.ensure_future(bus.drain())
            await asyncio.sleep(0.01)
            go.set()
            await draining
            assert seen == [("1", 1)]
            stats = await bus.stats(keyed)
            assert (stats.ready, stats.in_flight) == (2, 0)
            await bus.start()
            await eventually(lambda: len(seen) == 3)

    run(main())

    assert seen == [("1", 1), ("2", 1), ("3", 1)]


@pytest.mark.parametrize("hurry", [False, True])
def test_drain_cancels_what_does_not_finish_in_time(hurry: bool) -> None:
    """After the deadline, or at once when asked to hurry, handlers are cancelled and given back uncounted."""
    bus, seen = make_bus(), []

    @bus.on(orders)
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        seen.append(delivery.attempt)
        if len(seen) == 1:
            await asyncio.Event().wait()

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await eventually(lambda: seen)
            draining = asyncio.ensure_future(bus.drain(0.05 if not hurry else 60))
            await asyncio.sleep(0.01)
            if hurry:
                bus.hurry()
            await draining
            await bus.start()
            await t.drain()

    run(main())

    assert seen == [1, 1]


def test_the_test_bus_can_surface_handler_errors() -> None:
    """With raise_errors the first exception of a handler comes out of drain; signals do not."""
    bus = make_bus()

    @bus.on(orders, retry=Retry(attempts=1))
    async def handle(order: Order) -> None:
        raise Reject("fine") if order.id == "reject" else ZeroDivisionError("mine")

    async def main() -> None:
        async with TestBus(bus, raise_errors=True) as t:
            await bus.send(orders, Order(id="reject"))
            await t.drain()
            await bus.send(orders, Order(id="1"))
            with pytest.raises(ZeroDivisionError, match="mine"):
                await t.drain()
            with pytest.raises(MsgbusError, match="no drained subscription"):
                t.dead_letters(placed)

    run(main())


def test_request_reply_answers_and_reports_failures() -> None:
    """Answers, errors and requests without a caller each end as they should."""
    price = RequestReply("price", Order, dict[str, float])
    bus = make_bus()

    @bus.on(price)
    async def quote(order: Order) -> dict[str, float]:
        if order.id == "bad":
            raise ValueError("unknown sku")
        if order.id == "odd":
            return "not a dict"  # type: ignore[return-value]
        return {"price": order.total}

    from msgbus.errors import EncodeError, RemoteError, RequestTimeout

    async def main() -> None:
        async with TestBus(bus) as t:
            assert await bus.request(price, Order(id="1", total=3)) == {"price": 3.0}
            with pytest.raises(RemoteError, match="ValueError: unknown sku"):
                await bus.request(price, Order(id="bad"))
            with pytest.raises(RemoteError, match="EncodeError"):
                await bus.request(price, Order(id="odd"))
            with pytest.raises(EncodeError, match="delay="):
                await bus.request(price, Order(id="1"), delay=3)
            with pytest.raises(DecodeError, match="the answer of"):
                await bus.request(RequestReply("price", Order, int), Order(id="1"))
            with pytest.raises(RequestTimeout):
                await bus.request(RequestReply("nobody", Order, str), Order(id="1"), timeout=0.05)
            await inject(bus, price, b'{"id": "1"}')
            await inject(bus, price, b'{"id": "bad"}')
            await t.drain()
            assert len(t.dead_letters(price)) == 1
            answers = await asyncio.gather(*(bus.request(price, Order(id="1", total=n)) for n in range(100)))
            assert answers == [{"price": float(n)} for n in range(100)]

    run(main())


def test_publish_middleware_around_a_request_ends_in_its_own_time() -> None:
    """The answer is returned as soon as it is there; what middleware does after the confirm is not cut off."""
    price = RequestReply("price", Order, str)
    answered = asyncio.Event()
    ended: list[str] = []

    async def slow(message: Any, call_next: Any) -> None:
        await call_next(message)
        await answered.wait()
        ended.append(message.type)

    bus = make_bus(publish_middleware=[slow])

    @bus.on(price)
    async def quote(order: Order) -> str:
        return "9.90"

    async def main() -> None:
        async with TestBus(bus):
            assert await bus.request(price, Order(id="1")) == "9.90"
            assert ended == []
            answered.set()
            await eventually(lambda: ended == ["Order"])

    run(main())


@pytest.mark.parametrize("batch", [0, 2])
def test_what_is_larger_than_handled_is_dead_lettered_undecoded(batch: int) -> None:
    """A body over max_body= is refused at publish, and before it is decoded if it comes from elsewhere."""
    bus = Bus("memory://", max_body=100)
    words: Queue[str] = Queue("words", str)
    seen: list[str] = []

    if batch:

        @bus.on(words, batch=batch)
        async def take(batch: list[str]) -> None:
            seen.extend(batch)
    else:

        @bus.on(words)
        async def handle(word: str) -> None:
            seen.append(word)

    async def main() -> None:
        async with TestBus(bus) as t:
            with pytest.raises(MessageTooLarge, match="101 bytes, at most 100 are taken"):
                await bus.send(words, "x" * 101)
            await bus.send(words, "y" * 100)
            await inject(bus, words, b"z" * 101)
            await t.drain()

            assert seen == ["y" * 100]
            (dead,) = t.dead_letters(words)
            assert dead.report.reason == "undecodable"
            assert dead.report.detail == "the body has 101 bytes, more than the 100 that are handled (max_body=)"

    run(main())


def test_an_answer_larger_than_handled_is_an_error() -> None:
    """The caller is told, and decodes nothing."""
    bus = Bus("memory://bodies", max_body=100)
    echo: RequestReply[str, str] = RequestReply("echo", str, str)

    async def main() -> None:
        responder = Bus("memory://bodies", max_body=1000)

        @responder.on(echo)
        async def answer(count: str) -> str:
            return "x" * int(count)

        async with bus, responder:
            await responder.start()
            assert await bus.request(echo, "100") == "x" * 100
            with pytest.raises(DecodeError, match="the body has 101 bytes, more than the 100"):
                await bus.request(echo, "101")

    run(main())
