"""The shop's worker: every handler of the order processing. Run it with ``msgbus run examples.shop.app:bus``."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from decimal import Decimal
from time import perf_counter

from examples.shop.catalogue import unit_price
from examples.shop.ledger import Ledger
from examples.shop.model import (
    Basket,
    Charge,
    Order,
    OrderPaid,
    Quote,
    order_paid,
    order_placed,
    orders,
    payments,
    price,
)
from msgbus import Bus, Delivery, Idempotency, Reject, Retry
from msgbus.errors import RemoteError

bus = Bus(service="shop")
ledger = Ledger()


class BankUnavailable(Exception):
    """The bank did not answer; it may when asked again."""


@bus.on(price, concurrency=32)
async def quote(basket: Basket) -> Quote:
    """Answer what a basket costs."""
    prices = (unit_price(sku, basket.currency) * quantity for sku, quantity in basket.quantities.items())
    return Quote(goods=sum(prices, Decimal(0)))


@bus.on(orders, concurrency=16, idempotent=Idempotency(key="id"))
async def place(order: Order, delivery: Delivery[Order]) -> None:
    """Check an order, announce it and have it paid. An order that is sent twice is placed once: see ``idempotent``."""
    if not order.lines:
        raise Reject("the order has no lines")
    asked = perf_counter()
    try:
        basket = Basket(currency=order.currency, quantities={line.sku: line.quantity for line in order.lines})
        goods = (await bus.request(price, basket, cause=delivery)).goods
    except RemoteError as exc:
        raise Reject(f"the price service says: {exc.detail}") from exc
    ledger.write("quoted", order.id, ms=(perf_counter() - asked) * 1000)
    if order.total != goods + order.shipping:
        raise Reject("the order's total is not the sum of its lines and shipping")
    # Ids made from the order's: should this handler run again half-way, these are recognised as the same messages.
    await bus.publish(order_placed, order, id=f"{order.id}.placed", cause=delivery)
    charge = Charge(
        order_id=order.id, customer=order.customer, amount=order.total, currency=order.currency, card=order.card
    )
    await bus.send(payments, charge, id=f"{order.id}.charge", cause=delivery)
    ledger.write("placed", order.id)


@bus.on(payments, concurrency=32, idempotent=True, timeout=10, retry=Retry(attempts=5, base=0.05, cap=0.5))
async def pay(charge: Charge, delivery: Delivery[Charge]) -> None:
    """Charge the card. Banks fail now and then: the message is retried, and meanwhile the customer's next one waits."""
    await asyncio.sleep(0.002)  # the bank's network
    if charge.card == "tok_bank_that_never_answers" or _bank_is_down(charge.order_id, delivery.attempt):
        ledger.write("payment failed", charge.order_id, attempt=delivery.attempt)
        raise BankUnavailable("the bank did not answer")
    ledger.write("charged", charge.order_id, amount=str(charge.amount), currency=charge.currency)
    paid = OrderPaid(order_id=charge.order_id, customer=charge.customer, amount=charge.amount, currency=charge.currency)
    await bus.publish(order_paid, paid, id=f"{charge.order_id}.paid", cause=delivery)


@bus.on(order_placed, group="email", idempotent=True)
async def confirm_by_mail(order: Order) -> None:
    """Tell the customer that the order has arrived."""
    ledger.write("confirmation mailed", order.id)


@bus.on(order_placed, group="inventory", idempotent=True)
def reserve(order: Order) -> None:
    """Reserve the goods. A plain function: it runs in a thread, where it may block."""
    ledger.write("stock reserved", order.id, pieces=sum(line.quantity for line in order.lines))


@bus.on(order_placed, group="analytics", batch=200, batch_wait=0.1, idempotent=True)
async def count_countries(batch: list[Order]) -> None:
    """Count orders per country, up to 200 at a time."""
    countries = Counter(order.ship_to.country for order in batch)
    for order in batch:
        ledger.write("analysed", order.id, country=order.ship_to.country, batch=len(batch), countries=len(countries))


@bus.on(order_paid, group="email", idempotent=True)
async def send_receipt(paid: OrderPaid) -> None:
    """Send the receipt."""
    ledger.write("receipt mailed", paid.order_id)


@bus.on(order_paid, group="inventory", idempotent=True)
def dispatch(paid: OrderPaid) -> None:
    """Hand the reserved goods to the carrier."""
    ledger.write("dispatched", paid.order_id)


def _bank_is_down(order_id: str, attempt: int) -> bool:
    """Tell whether the bank fails this time: 8 of 100 attempts, the same ones in every run."""
    return zlib.crc32(f"{order_id}/{attempt}".encode()) % 100 < 8


if __name__ == "__main__":
    bus.run()
