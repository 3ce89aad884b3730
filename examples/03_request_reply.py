"""Request-reply: ask and get a typed answer, or a typed error."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from msgbus import Bus, RequestReply
from msgbus.errors import RemoteError, RequestTimeout


class PriceQuery(BaseModel):
    sku: str


class Price(BaseModel):
    sku: str
    euros: float


price = RequestReply("reply.price", PriceQuery, Price)
bus = Bus()
PRICES = {"pan": 34.90, "kettle": 49.90, "lamp": 64.00}


@bus.on(price)
async def quote(query: PriceQuery) -> Price:
    if query.sku == "slow":
        await asyncio.sleep(60)
    if query.sku not in PRICES:
        raise LookupError(f"there is no {query.sku}")
    return Price(sku=query.sku, euros=PRICES[query.sku])


async def main() -> None:
    async with bus:
        await bus.start()
        answers = await asyncio.gather(*(bus.request(price, PriceQuery(sku=sku)) for sku in PRICES))
        for answer in answers:
            print(f"{answer.sku} costs {answer.euros:.2f}")
        try:
            await bus.request(price, PriceQuery(sku="unicorn"))
        except RemoteError as exc:
            print("the responder failed:", exc)
        try:
            await bus.request(price, PriceQuery(sku="slow"), timeout=0.3)
        except RequestTimeout as exc:
            print("no answer:", exc)
        await bus.drain(timeout=0)  # do not wait for the slow one


if __name__ == "__main__":
    asyncio.run(main())
