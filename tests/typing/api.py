"""How payload types flow through the API, in a type checker's eyes. Checked by mypy, never run."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_type

from msgbus import Bus, Delivery, Idempotency, Message, Queue, RequestReply, Retry, Topic


@dataclass
class Order:
    id: str


@dataclass
class Price:
    amount: float


orders = Queue("orders", Order)
placed = Topic("placed", Order)
price = RequestReply("price", Order, Price)
raw = Queue("raw", bytes)
loose = Queue("loose")
either: Topic[Any] = Topic("either", Order | Price)
bus = Bus("memory://")

assert_type(orders, Queue[Order])
assert_type(placed, Topic[Order])
assert_type(price, RequestReply[Order, Price])
assert_type(raw, Queue[bytes])
assert_type(loose, Queue[dict[str, Any]])


@bus.on(orders, retry=Retry(attempts=3), timeout=30)
async def asynchronous(order: Order) -> None:
    assert_type(order.id, str)


@bus.on(orders)
def plain(order: Order, delivery: Delivery[Order]) -> None:
    assert_type(delivery.payload, Order)


@bus.on(placed, group="a", idempotent=Idempotency(ttl=60))
def with_message(order: Order, message: Message) -> None:
    assert_type(message.key, str | None)


@bus.on(orders, batch=10, batch_wait=0.1)
def batch(items: list[Order]) -> None: ...


@bus.on(orders, batch=10)
async def deliveries(items: list[Delivery[Order]]) -> None: ...


@bus.on(price)
async def quote(order: Order) -> Price:
    return Price(1.0)


@bus.on(price)
def quote_plainly(order: Order) -> Price:
    return Price(1.0)


@bus.on(orders, idempotent=Idempotency(within=lambda: sqlite3.connect("app.db")))
async def inside(order: Order, db: sqlite3.Connection) -> None: ...


@bus.on(orders, batch=10, idempotent=Idempotency(within=lambda: sqlite3.connect("app.db")))
async def batch_inside(batch: list[Order], db: sqlite3.Connection) -> None: ...


@bus.on(orders)  # type: ignore[arg-type]
def takes_another_s_delivery(order: Order, delivery: Delivery[Price]) -> None: ...


assert_type(plain, Callable[[Order, Delivery[Order]], None])


@bus.on(orders)  # type: ignore[arg-type]
def takes_something_else(item: Price) -> None: ...


@bus.on(price)  # type: ignore[arg-type]
def answers_something_else(order: Order) -> str:
    return "1"


@bus.on(orders, batch=10)  # type: ignore[arg-type]
def takes_no_list(order: Order) -> None: ...


async def use() -> None:
    await bus.send(orders, Order("1"), key="k", delay=1.5)
    await bus.publish(placed, Order("1"))
    assert_type(await bus.request(price, Order("1"), timeout=3), Price)
    assert_type(await bus.send_many(orders, [Order("1")]), int)
    await bus.send(raw, b"")
    await bus.send(loose, {"a": 1})

    await bus.send(orders, Price(1.0))  # type: ignore[misc]
    await bus.publish(placed, "text")  # type: ignore[misc]
    await bus.send(orders, Order("1"), dely=3)  # type: ignore[call-arg]
    await bus.request(price, Price(1.0))  # type: ignore[misc]


def use_sync() -> None:
    bus.sync.send(orders, Order("1"))
    assert_type(bus.sync.request(price, Order("1")), Price)
    bus.sync.send(orders, Price(1.0))  # type: ignore[misc]
