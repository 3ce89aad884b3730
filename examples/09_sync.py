"""Without asyncio: the same bus in a Flask or Django view, or in a script like this one."""

from __future__ import annotations

import threading

from pydantic import BaseModel

from msgbus import Bus, Queue, RequestReply


class Order(BaseModel):
    id: str
    total: float


orders = Queue("sync.orders", Order)
vat = RequestReply("sync.vat", Order, float)
bus = Bus()
handled = threading.Event()


@bus.on(orders)
def handle(order: Order) -> None:  # a plain function runs in a thread: it may block
    print("handled", order.id)
    handled.set()


@bus.on(vat)
def compute_vat(order: Order) -> float:
    return round(order.total * 0.19, 2)


def view(order_id: str) -> tuple[str, int]:
    """Handle one web request, as a Flask view would."""
    order = Order(id=order_id, total=100.0)
    bus.sync.send(orders, order)  # returns when the broker has confirmed it; safe from any thread
    return f"thank you; of that {bus.sync.request(vat, order, timeout=5)} is VAT", 202


def main() -> None:
    with bus.sync:  # a web application leaves this out: the bus opens at the first call and closes at exit
        bus.sync.start()
        print(view("A-1"))
        handled.wait(5)


if __name__ == "__main__":
    main()
