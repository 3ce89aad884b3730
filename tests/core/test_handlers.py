from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from msgbus import Bus, Delivery, Idempotency, Message, Queue, RequestReply, Retry, Topic
from msgbus.errors import ChannelError, HandlerError
from tests.core.support import Order

orders = Queue("orders", Order)
placed = Topic("placed", Order)
price = RequestReply("price", Order, str)


class Other(BaseModel):
    x: int


def plain(order: Order) -> None: ...
def untyped(order):  # type: ignore[no-untyped-def]
    ...


async def asynchronous(order: Order) -> None: ...
def with_delivery(order: Order, delivery: Delivery[Order]) -> None: ...
def swapped(delivery: Delivery[Order], order: Order) -> None: ...
def delivery_only(delivery: Delivery[Order]) -> None: ...
def with_message(order: Order, message: Message, delivery: Delivery[Any]) -> None: ...
def wider(order: BaseModel) -> None: ...
def either(order: Order | Other) -> None: ...
def annotated(order: Annotated[Order, "the order"]) -> None: ...
def defaulted(order: Order, retries: int = 3, *, loud: bool = False) -> None: ...


class Handler:
    async def method(self, order: Order) -> None: ...
    async def __call__(self, order: Order) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        plain,
        untyped,
        asynchronous,
        with_delivery,
        swapped,
        delivery_only,
        with_message,
        wider,
        either,
        annotated,
        defaulted,
        Handler().method,
        Handler(),
        partial(with_delivery, delivery=None),  # type: ignore[arg-type]
        lambda order: None,
    ],
)
def test_handlers_that_take_the_payload_are_registered_as_they_are(handler: Any) -> None:
    """Functions, methods, callables and partials with a fitting signature are accepted and returned unchanged."""
    bus = Bus()

    assert bus.on(orders)(handler) is handler
    assert len(bus.subscriptions) == 1


def nothing() -> None: ...
def wrong(order: Other) -> None: ...
def text(order: str) -> None: ...
def two(order: Order, other: Order) -> None: ...
def required_keyword(order: Order, *, loud: bool) -> None: ...
def generator(order: Order):  # type: ignore[no-untyped-def]
    yield order


async def asynchronous_generator(order: Order):  # type: ignore[no-untyped-def]
    yield order


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (nothing, "takes no parameter"),
        (wrong, r"wrong takes Other, but Queue\('orders'\) carries Order"),
        (text, "takes str, but"),
        (two, "'other' is one too many"),
        (required_keyword, "keyword-only 'loud'"),
        (generator, "is a generator"),
        (asynchronous_generator, "is a generator"),
        (7, "must be callable"),
    ],
)
def test_handlers_that_fit_no_payload_are_refused(handler: Any, said: str) -> None:
    """A wrong signature is an error at registration that names the handler and the channel."""
    with pytest.raises(HandlerError, match=said):
        Bus().on(orders)(handler)


def test_local_types_in_annotations_are_resolved() -> None:
    """A payload class that is local to a function works although its annotation is only text."""

    class Local(BaseModel):
        x: int

    bus = Bus()

    @bus.on(Queue("local", Local))
    def handle(item: Local, delivery: Delivery[Local]) -> None: ...

    assert bus.subscriptions[0].plans[0].wants_delivery


def test_unknown_names_in_annotations_are_told() -> None:
    """An annotation that cannot be resolved is named."""

    def handle(item: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(HandlerError, match="'Missing'"):
        Bus().on(orders)(handle)


def test_one_handler_per_subscription_and_type() -> None:
    """A second handler for the same messages is refused; another group, or another type, is fine."""
    bus = Bus()
    bus.on(orders)(plain)
    bus.on(placed, group="a")(plain)
    bus.on(placed, group="b")(plain)

    with pytest.raises(HandlerError, match=r"asynchronous cannot handle Order of 'orders': plain already does"):
        bus.on(orders)(asynchronous)
    with pytest.raises(HandlerError, match="group="):
        bus.on(placed, group="a")(asynchronous)


def test_handlers_are_chosen_by_type_on_a_union() -> None:
    """Each type of a union may have its own handler, with the same options."""
    bus = Bus()
    both = Topic("both", Order | Other)
    bus.on(both, group="g")(plain)
    with pytest.raises(HandlerError, match="different options"):
        bus.on(both, group="g", concurrency=3)(wrong)
    bus.on(both, group="g")(wrong)

    assert [plan.types for plan in bus.subscriptions[0].plans] == [(Order,), (Other,)]


def test_the_same_channel_defined_differently_is_refused() -> None:
    """Two definitions of one name with other types would make each other's messages undecodable."""
    bus = Bus()
    bus.on(orders)(plain)

    with pytest.raises(ChannelError, match="defined twice"):
        bus.on(Queue("orders", Other))(wrong)


@pytest.mark.parametrize(
    ("channel", "options", "said"),
    [
        (placed, {}, "needs group="),
        (orders, {"group": "g"}, "group= is for topics"),
        (orders, {"concurrency": 0}, "concurrency= takes a whole number from 1"),
        (orders, {"prefetch": 0}, "prefetch="),
        (orders, {"batch": -1}, "batch="),
        (orders, {"timeout": -1}, "timeout= must be 0 or more"),
        (orders, {"unknown": "guess"}, "unknown= is"),
        (orders, {"park": True}, "has no key"),
        (orders, {"retry": 3}, r"retry= takes a Retry"),
        (orders, {"idempotent": "yes"}, "idempotent= takes"),
        ("orders", {}, "takes a Queue, a Topic, a RequestReply or a ScatterGather"),
        (price, {"batch": 3}, "answered one by one"),
    ],
)
def test_options_that_do_not_fit_are_refused(channel: Any, options: dict[str, Any], said: str) -> None:
    """Each bad option of bus.on is named with what it takes."""
    with pytest.raises(HandlerError, match=said):
        Bus().on(channel, **options)(plain)


@pytest.mark.parametrize(
    "make",
    [lambda: Idempotency(ttl=-1), lambda: Idempotency(lease=0), lambda: Idempotency(on_store_error="maybe")],  # type: ignore[arg-type]
)
def test_impossible_idempotency_is_refused(make: Any) -> None:
    """Times below zero and unknown choices are refused."""
    with pytest.raises(ValueError, match="Idempotency"):
        make()


def items(batch: list[Order]) -> None: ...
def deliveries(batch: list[Delivery[Order]]) -> None: ...
def scalar(order: Order) -> None: ...
def others(batch: list[Other]) -> None: ...
def list_and_more(batch: list[Order], delivery: Delivery[Order]) -> None: ...


def test_batch_handlers_take_a_list() -> None:
    """With batch= the handler takes a list of payloads or of deliveries, and nothing else."""
    for good in (items, deliveries, untyped):
        Bus().on(orders, batch=10)(good)
    for bad in (scalar, others, list_and_more):
        with pytest.raises(HandlerError):
            Bus().on(orders, batch=10)(bad)  # type: ignore[arg-type]


def test_requests_are_tried_once_unless_told_otherwise() -> None:
    """A caller waits: a failed request is answered with its error at once."""
    bus = Bus()
    bus.on(price)(lambda order: "1")
    bus.on(RequestReply("slow", Order, str), retry=Retry(attempts=3))(lambda order: "1")

    assert [s.options.retry.attempts for s in bus.subscriptions] == [1, 3]
