"""The dead letter box over brokers with and without browsing."""

from __future__ import annotations

from typing import Any

import pytest

from msgbus import Bus, Delivery, Queue, Retry, TestBus, Topic
from msgbus.adapter import Capabilities
from msgbus.errors import ChannelError, PublishRejected
from msgbus_memory import MemoryAdapter
from tests.core.support import Order, run

orders = Queue("orders", Order)


@pytest.fixture(params=["browse", "receive"])
def box_kind(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with a broker that can be browsed, and with one that cannot."""
    if request.param == "receive":
        had = MemoryAdapter.capabilities
        fields = {name: getattr(had, name) for name in Capabilities.__dataclass_fields__}
        monkeypatch.setattr(MemoryAdapter, "capabilities", Capabilities(**fields | {"browse": False}))
    return str(request.param)


def failing_bus(fails: set[str]) -> tuple[Bus, list[str]]:
    bus, seen = Bus("memory://"), list[str]()

    @bus.on(orders, retry=Retry(attempts=1))
    async def handle(order: Order) -> None:
        seen.append(order.id)
        if order.id in fails:
            raise RuntimeError(order.id)

    return bus, seen


def test_looking_does_not_consume(box_kind: str) -> None:
    """Peek pages and show finds one, as often as one likes."""
    bus, _ = failing_bus({str(n) for n in range(5)})

    async def main() -> None:
        async with TestBus(bus) as t:
            for n in range(5):
                await bus.send(orders, Order(id=str(n)), id=f"m{n}")
            await t.drain()
            box = await bus.dead_letters(orders)
            for _ in range(2):
                assert [d.message.id for d in await box.peek(limit=2)] == ["m0", "m1"]
                assert [d.message.id for d in await box.peek(limit=2, skip=3)] == ["m3", "m4"]
            shown = await box.show("m3")
            assert shown is not None
            assert shown.report.detail == "3"
            assert await box.show("nope") is None
            assert (await bus.stats(orders)).dead == 5

    run(main())


def test_some_or_all_are_replayed_or_dropped(box_kind: str) -> None:
    """Ids or a limit choose; progress is told; what fails again is a dead letter again, once."""
    fails = {str(n) for n in range(6)}
    bus, seen = failing_bus(fails)
    progress: list[int] = []

    async def main() -> None:
        async with TestBus(bus) as t:
            for n in range(6):
                await bus.send(orders, Order(id=str(n)), id=f"m{n}")
            await t.drain()
            seen.clear()
            box = await bus.dead_letters(orders)
            fails.discard("4")
            assert await box.replay(["m4", "m5", "nope"], on_progress=progress.append) == 2
            await t.drain()
            assert seen == ["4", "5"]
            assert await box.drop(["m5"]) == 1
            assert await box.drop(limit=1) == 1
            assert [d.message.id for d in t_dead(await box.peek())] == ["m1", "m2", "m3"]
            assert await box.replay() == 3
            await t.drain()
            assert await box.drop() == 3
            assert await box.drop() == 0
            assert await box.replay([]) == 0

    run(main())

    assert progress[-1] == 2
    assert seen == ["4", "5", "1", "2", "3"]


def t_dead(messages: list[Any]) -> list[Any]:
    return sorted(messages, key=lambda dead: dead.message.id)


def test_a_replay_that_is_refused_keeps_the_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be published again stays in the box, and the error is raised."""
    bus, _ = failing_bus({"1"})

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, Order(id="1"))
            await t.drain()
            box = await bus.dead_letters(orders)

            async def refuse(self: Any, batch: Any) -> Any:
                return [PublishRejected("full")] * len(batch)

            with monkeypatch.context() as patched:
                patched.setattr(MemoryAdapter, "publish", refuse)
                with pytest.raises(PublishRejected):
                    await box.replay()
            assert len(await box.peek()) == 1

    run(main())


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{folder}/bus.db"])
def test_a_pattern_subscription_gets_its_replay_under_the_old_name(url: str, tmp_path: Any) -> None:
    """A dead letter of a pattern comes back with the name of the topic it was published to, to its group only."""
    bus, seen = Bus(url.replace("{folder}", str(tmp_path)), namespace="test"), []
    everything, eu = Topic("order.#", Order), Topic("order.placed.eu", Order)
    broken = True

    @bus.on(everything, group="a", retry=Retry(attempts=1))
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        if broken:
            raise RuntimeError("x")
        seen.append(("a", delivery.channel))

    @bus.on(everything, group="b")
    async def other(order: Order) -> None:
        seen.append(("b", ""))

    async def main() -> None:
        nonlocal broken
        from tests.core.support import eventually

        async with bus:
            await bus.start()
            await bus.publish(eu, Order(id="1"))

            async def dead() -> bool:
                return (await bus.stats(everything, group="a")).dead == 1

            await eventually(dead)
            broken = False
            assert await (await bus.dead_letters("order.#", group="a")).replay() == 1
            await eventually(lambda: len(seen) == 2)

    run(main())

    assert sorted(seen) == [("a", "order.placed.eu"), ("b", "")]


def test_a_box_needs_the_right_group() -> None:
    """Topics have a box per group, queues have one."""

    async def main() -> None:
        async with Bus("memory://") as bus:
            with pytest.raises(ChannelError, match="needs group="):
                await bus.dead_letters(Topic("t", Order))
            with pytest.raises(ChannelError, match="has no group="):
                await bus.dead_letters(orders, group="g")

    run(main())
