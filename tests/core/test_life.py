"""Opening, running, signals, faults of the adapter, and the facade for code without asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from msgbus import Bus, Delivery, Queue, RequestReply, Retry, ScatterGather, Topic
from msgbus.adapter import Ack, Outcome, Received
from msgbus.errors import BrokerUnavailable, ConfigError, LeaseLost, MsgbusError, SettleError
from msgbus_memory import MemoryAdapter
from tests.core.support import Order, eventually, run

orders = Queue("orders", Order)


class Troubled(MemoryAdapter):
    """The memory broker with a subscription that fails as told."""

    plan: dict[str, list[Any]] = {}  # noqa: RUF012 - replaced by the fixture

    async def subscribe(self, source: Any, options: Any) -> Any:
        subscription = await super().subscribe(source, options)
        plan = type(self).plan
        receive, settle = subscription.receive, subscription.settle

        async def troubled_receive(limit: int, wait: float) -> Sequence[Received]:
            if plan.get("receive"):
                raise plan["receive"].pop(0)
            return await receive(limit, wait)

        async def troubled_settle(outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
            answer = plan["settle"].pop(0) if plan.get("settle") else None
            if isinstance(answer, BrokerUnavailable | ZeroDivisionError):
                raise answer
            if answer is not None:
                return [answer] * len(outcomes)
            return await settle(outcomes)

        subscription.receive, subscription.settle = troubled_receive, troubled_settle  # type: ignore[method-assign]
        return subscription


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    plan: dict[str, list[Any]] = {}
    monkeypatch.setattr(Troubled, "plan", plan)
    monkeypatch.setattr("msgbus._connections.adapter_class", lambda _: Troubled)
    return plan


def test_receiving_survives_an_outage_and_health_tells(trouble: dict[str, list[Any]]) -> None:
    """While the broker is away health is red; then the messages come by themselves."""
    bus, seen = Bus("memory://"), []
    bus.on(orders)(lambda order: seen.append(order.id))
    trouble["receive"] = [BrokerUnavailable("away")] * 3

    async def main() -> None:
        async with bus:
            await bus.start()
            await eventually(lambda: not bus.health().ok)
            assert bus.health().subscriptions == {"orders": False}
            await bus.send(orders, Order(id="1"))
            await eventually(lambda: seen)
            assert bus.health().ok

    run(main())


def test_settling_is_tried_until_the_broker_has_it(trouble: dict[str, list[Any]]) -> None:
    """An ack that fails is sent again; the handler does not run again meanwhile."""
    bus, seen = Bus("memory://"), []
    bus.on(orders)(lambda order: seen.append(order.id))
    trouble["settle"] = [BrokerUnavailable("away"), SettleError("not now")]

    async def main() -> None:
        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"))

            async def gone() -> bool:
                stats = await bus.stats(orders)
                return bool(seen) and (stats.ready, stats.in_flight) == (0, 0)

            await eventually(gone)

    run(main())

    assert seen == ["1"]


def test_an_ack_that_came_too_late_is_remembered(trouble: dict[str, list[Any]]) -> None:
    """When a handled message comes again because its ack was lost, it is acked without running the handler."""
    bus, seen = Bus("memory://", lease=0.3), []
    bus.on(orders)(lambda order: seen.append(order.id))
    trouble["settle"] = [LeaseLost("too late")]

    async def main() -> None:
        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"))

            async def gone() -> bool:
                stats = await bus.stats(orders)
                return bool(seen) and (stats.ready, stats.in_flight) == (0, 0)

            await eventually(gone)

    run(main())

    assert seen == ["1"]


def test_a_bug_in_the_adapter_is_not_swallowed(trouble: dict[str, list[Any]]) -> None:
    """Whoever waits for the bus is told, and health is red."""
    bus = Bus("memory://")
    bus.on(orders)(lambda order: None)
    trouble["receive"] = [ZeroDivisionError("a bug")]

    async def main() -> None:
        async with bus:
            await bus.start()
            with pytest.raises(ZeroDivisionError, match="a bug"):
                await bus.wait()
            assert not bus.health().ok

    run(main())


def test_a_lost_lease_cancels_the_handler_and_leaves_the_new_owner_alone() -> None:
    """A handler whose lease was lost is told by cancellation; its late settlement changes nothing."""
    bus, log = Bus("memory://shared-lease", lease=0.3), []

    @bus.on(orders, concurrency=1)
    async def handle(order: Order, delivery: Delivery[Order]) -> None:
        log.append(("start", delivery.attempt))
        if delivery.attempt == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.append(("cancelled", 1))
                raise

    async def main() -> None:
        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"))
            await eventually(lambda: log)
            adapter = next(iter(bus._open._connections)).adapter
            for subscription in adapter._subscriptions:
                for entry in list(subscription._consumer.held.values()):
                    entry.lease = 0.0  # what a pause of the process does
                    subscription._consumer.box.watch(0.0)
            await eventually(lambda: ("start", 2) in log)

            async def gone() -> bool:
                stats = await bus.stats(orders)
                return (stats.ready, stats.in_flight) == (0, 0)

            await eventually(gone)

    run(main())

    assert log == [("start", 1), ("cancelled", 1), ("start", 2)]


def test_opening_what_cannot_be_opened_leaves_nothing_behind(tmp_path: Path) -> None:
    """A failed start can be repeated, and the bus is closed meanwhile."""
    bus = Bus(f"sqlite:///{tmp_path}/no/such/folder/x.db")

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(MsgbusError):
                await bus.__aenter__()
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_closing_leaves_no_task_and_no_thread() -> None:
    """After the bus is closed, nothing of it runs any more."""
    bus = Bus("memory://")
    bus.on(orders, timeout=5, idempotent=True)(lambda order: None)
    price = RequestReply("price", Order, str)
    bus.on(price)(lambda order: "1")

    async def main() -> None:
        before = set(threading.enumerate())
        async with bus:
            await bus.start()
            await bus.send(orders, Order(id="1"))
            assert await bus.request(price, Order(id="1")) == "1"
        assert len(asyncio.all_tasks()) == 1
        await eventually(lambda: set(threading.enumerate()) <= before)

    run(main())


def test_the_sync_facade_does_what_the_bus_does(tmp_path: Path) -> None:
    """Code without asyncio sends, requests and consumes; it opens by itself and closes when told."""
    bus, seen = Bus(f"sqlite:///{tmp_path}/bus.db"), []
    placed = Topic("placed", Order)
    price = RequestReply("price", Order, str)
    bus.on(orders)(lambda order: seen.append(order.id))
    bus.on(placed, group="g")(lambda order: seen.append(order.id))
    bus.on(price)(lambda order: "9.90")
    offers = ScatterGather("offers", Order, float)
    bus.on(offers, group="g")(lambda order: order.total)

    with bus.sync as sync:
        assert sync is bus.sync
        sync.send(orders, Order(id="1"))
        assert sync.send_many(orders, [Order(id="2"), Order(id="3")]) == 2
        sync.publish(placed, Order(id="4"))
        assert sync.publish_many(placed, [Order(id="5")]) == 1
        sync.start()
        assert sync.request(price, Order(id="1"), timeout=5) == "9.90"
        assert sync.gather(offers, Order(id="1"), timeout=5, quorum=1).replies == [1.0]
        assert sync.health().ok
        run(eventually(lambda: len(seen) == 5))
        sync.drain()
        assert sync.stats(orders).ready == 0
    bus.sync.send(orders, Order(id="6"))  # opens again
    bus.sync.close()
    bus.sync.close()

    assert sorted(seen) == list("12345")


def test_the_sync_facade_refuses_what_would_hang() -> None:
    """Called from a running event loop it would block it; a bus that cannot open says so and can be tried again."""

    async def main() -> None:
        with pytest.raises(MsgbusError, match="would block this event loop"):
            Bus("memory://").sync.send(orders, Order(id="1"))

    run(main())
    bus = Bus("memory://", topology="nonsense")  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(ConfigError, match="topology=: "):
            bus.sync.send(orders, Order(id="1"))


def test_the_sync_facade_survives_a_fork(tmp_path: Path) -> None:
    """A pre-forking server's children open connections of their own."""
    program = f"""
        import os
        from msgbus import Bus, Queue
        q = Queue("q", str)
        bus = Bus("sqlite:///{tmp_path}/bus.db")
        bus.sync.send(q, "parent")
        pid = os.fork()
        if pid == 0:
            bus.sync.send(q, "child")
            bus.sync.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        bus.sync.send(q, "parent again")
        assert bus.sync.stats(q).ready == 3
    """

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


WORKER = """
    import asyncio, sys, time
    from msgbus import Bus, Queue
    q = Queue("q", dict)
    bus = Bus("sqlite:///{folder}/bus.db", drain_timeout={drain}, lease=2)

    @bus.on(q, concurrency=2)
    async def handle(item: dict) -> None:
        print("start", item["n"], flush=True)
        await asyncio.sleep(item["seconds"])
        print("done", item["n"], flush=True)

    bus.run()
    print("stopped", flush=True)
"""


def start_worker(folder: Path, drain: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(WORKER.replace("{folder}", str(folder)).replace("{drain}", str(drain)))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def feed(folder: Path, *seconds: float) -> None:
    bus = Bus(f"sqlite:///{folder}/bus.db")
    with bus.sync as sync:
        sync.send_many(Queue("q", dict), [{"n": n, "seconds": s} for n, s in enumerate(seconds)])


def left(folder: Path) -> tuple[int | None, int | None]:
    bus = Bus(f"sqlite:///{folder}/bus.db")
    with bus.sync as sync:
        stats = sync.stats(Queue("q", dict))
    return stats.ready, stats.in_flight


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_handlers_finish_and_gives_the_rest_back(tmp_path: Path, number: signal.Signals) -> None:
    """run() ends after a signal: what runs finishes, what waits goes back, the exit code is 0."""
    feed(tmp_path, 0.5, 0.5, 0.5, 0.5)
    worker = start_worker(tmp_path, 10)
    assert worker.stdout is not None
    first = worker.stdout.readline()
    worker.send_signal(number)
    out, err = worker.communicate(timeout=20)

    assert worker.returncode == 0, err
    lines = (first + out).split("\n")
    assert lines.count("done 0") == lines.count("done 1") == 1
    assert "stopped" in lines
    assert left(tmp_path) == (2, 0)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Handlers that would run for long are cancelled and their messages go back."""
    feed(tmp_path, 60)
    worker = start_worker(tmp_path, 60)
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.5)
    worker.send_signal(signal.SIGTERM)
    out, err = worker.communicate(timeout=10)

    assert worker.returncode == 0, err
    assert "done" not in out
    assert left(tmp_path) == (1, 0)


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    """After SIGKILL the lease ends and another worker handles the message, with the attempt counted."""
    feed(tmp_path, 60)
    worker = start_worker(tmp_path, 60)
    assert worker.stdout is not None
    worker.stdout.readline()
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    attempts: list[int] = []
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")

    @bus.on(Queue("q", dict), retry=Retry(attempts=5))
    async def handle(item: dict[str, Any], delivery: Delivery[Any]) -> None:
        attempts.append(delivery.attempt)

    async def main() -> None:
        async with bus:
            await bus.start()
            await eventually(lambda: attempts, within=45)

    run(main(), within=50)

    assert attempts == [2]


def test_outcomes_are_told_apart_by_identity() -> None:
    """Two acks of equal content are two acks."""
    received = Received(b"", {})

    assert Ack(received) != Ack(received)
