"""Failure: a message is tried again, becomes a dead letter with its reason, and is replayed once the bug is mended."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from msgbus import Bus, Delivery, Queue, Reject, Retry


class Payment(BaseModel):
    id: str
    amount: float


payments = Queue("failure.payments", Payment)
bus = Bus()
bank_works = False
paid: asyncio.Queue[str] = asyncio.Queue()


@bus.on(payments, retry=Retry(attempts=3, base=0.05))
async def pay(payment: Payment, delivery: Delivery[Payment]) -> None:
    if payment.amount <= 0:
        raise Reject("nothing to pay")  # trying again would not help
    if not bank_works:
        print(f"{payment.id}: attempt {delivery.attempt} failed")
        raise ConnectionError("the bank does not answer")
    paid.put_nowait(payment.id)


async def main() -> None:
    global bank_works  # noqa: PLW0603 - the outside world
    async with bus:
        await bus.start()
        await bus.send_many(payments, [Payment(id="p-1", amount=12.5), Payment(id="p-2", amount=0)])
        while (await bus.stats(payments)).dead != 2:
            await asyncio.sleep(0.05)
        box = await bus.dead_letters(payments)
        letters = await box.peek()
        for letter in sorted(letters, key=lambda one: one.report.reason):
            print(f"dead: {letter.message.body.decode()} {letter.report.reason}, {letter.report.detail}")
        bank_works = True
        failed = [letter.message.id for letter in letters if letter.report.reason == "failed"]
        print("replayed:", await box.replay(failed))
        print("paid:", await paid.get())
        print("dropped:", await box.drop())


if __name__ == "__main__":
    asyncio.run(main())
