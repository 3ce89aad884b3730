"""The shop's messages and the channels they travel on. Producers and workers share this file, nothing else."""

from __future__ import annotations

import os
from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, PositiveInt

from msgbus import Queue, RequestReply, Topic

# A broker without order per key refuses keyed queues at start-up; MSGBUS_DEMO_ORDERED=0 then does without.
ORDERED = os.environ.get("MSGBUS_DEMO_ORDERED", "1") != "0"


class Customer(BaseModel):
    id: str
    name: str
    email: str


class Address(BaseModel):
    street: str
    postcode: str
    city: str
    country: str


class Line(BaseModel):
    sku: str
    name: str
    quantity: PositiveInt
    unit_price: Decimal


class Order(BaseModel):
    id: str
    placed_at: datetime
    customer: Customer
    ship_to: Address
    currency: str
    lines: list[Line]
    shipping: Decimal
    total: Decimal
    card: str


class Charge(BaseModel):
    order_id: str
    customer: Customer
    amount: Decimal
    currency: str
    card: str


class OrderPaid(BaseModel):
    order_id: str
    customer: Customer
    amount: Decimal
    currency: str


class Basket(BaseModel):
    currency: str
    quantities: dict[str, PositiveInt]


class Quote(BaseModel):
    goods: Decimal


orders = Queue("orders", Order, key=(lambda o: o.customer.id) if ORDERED else None)
payments = Queue("payments", Charge, key=(lambda c: c.customer.id) if ORDERED else None)
order_placed = Topic("order.placed", Order)
order_paid = Topic("order.paid", OrderPaid)
price = RequestReply("price", Basket, Quote)
