"""Requests to many: answers are gathered until the quorum or the deadline."""

from __future__ import annotations

import pytest

from msgbus import Bus, RequestReply, ScatterGather
from msgbus.errors import ChannelError, DecodeError, HandlerError, RemoteError
from tests.core.support import Order, run


def test_gather_collects_answers_and_errors_until_the_quorum() -> None:
    """Every group answers; errors and odd answers are told apart; a quorum ends the wait, the deadline too."""
    ask = ScatterGather("ask", Order, float)

    async def main() -> None:
        bus = Bus("memory://")

        @bus.on(ask, group="whole")
        async def whole(order: Order) -> float:
            return order.total

        @bus.on(ask, group="half")
        def half(order: Order) -> float:
            return order.total / 2

        @bus.on(ask, group="broken")
        async def broken(order: Order) -> float:
            raise LookupError(order.id)

        async with bus:
            await bus.start()
            found = await bus.gather(ask, Order(id="1", total=4), quorum=2)
            assert sorted(found.replies) == [2.0, 4.0]
            found = await bus.gather(ask, Order(id="1", total=4), timeout=0.3, quorum=3)
            assert sorted(found.replies) == [2.0, 4.0]
            assert [str(error) for error in found.errors] == ["LookupError: 1"]
            mixed = await bus.gather(ScatterGather("ask", Order, int), Order(id="1", total=3), timeout=0.3, quorum=2)
            assert mixed.replies == [3]  # 1.5 is no int: what cannot be decoded is no good answer
            odd = await bus.gather(ScatterGather("ask", Order, list), Order(id="1"), timeout=0.3)
            assert {type(error) for error in odd.errors} == {DecodeError, RemoteError}
            with pytest.raises(ChannelError, match="takes a ScatterGather"):
                await bus.gather(RequestReply("r", Order, float), Order(id="1"))  # type: ignore[arg-type]
            with pytest.raises(ChannelError, match="takes a RequestReply"):
                await bus.request(ask, Order(id="1"))  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="from 1, got 0"):
                await bus.gather(ask, Order(id="1"), quorum=0)
        with pytest.raises(HandlerError, match="needs group="):
            bus.on(ask)

    run(main())
