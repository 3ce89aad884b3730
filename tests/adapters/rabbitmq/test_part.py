"""What is held back in a process for the order of its key, without a broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from msgbus.adapter import KEY, Nack, Received
from msgbus_rabbitmq._lanes import Receipt
from msgbus_rabbitmq._part import Part


class EarlyClock:
    """Wakes sleepers a moment before their time, as a timer may that goes by another clock."""

    time = 0.0

    def now(self):
        return 1e9 + self.time

    def monotonic(self):
        return self.time

    async def sleep(self, delay):
        await asyncio.sleep(0)
        self.time += delay - 1e-6


def test_a_held_message_comes_although_the_timer_is_early():
    """Its key would wait without end otherwise: nothing else looks at its lane."""

    async def body():
        part = Part(
            lambda on_message, on_answer, on_lost: SimpleNamespace(),
            keyed=True,
            clock=EarlyClock(),
            offer=lambda _: False,
            wake=lambda: None,
            repair=None,
        )
        for tag in (1, 2):
            part._on_message(Received(b"", {KEY: "k"}, 1, receipt=Receipt(1, tag, "q")))
        (first,) = part.take(1)
        part.hold(Nack(first, delay=0.1))
        assert not part.can_take
        await asyncio.gather(*part._timers)
        assert [received.receipt.tag for received in part.take(2)] == [1, 2]

    asyncio.run(body())
