"""What a request waits for: its answer, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from msgbus import Bus, Message, RequestReply
from msgbus.adapter import Address, Kind, Outgoing
from msgbus.errors import NoResponders, PublishError
from msgbus_memory import MemoryAdapter
from tests.core.support import eventually, run

echo = RequestReply("echo", str, str)


async def passing(message: Message, call_next: Callable[[Message], Awaitable[None]]) -> None:
    await call_next(message)


def _publish(monkeypatch: pytest.MonkeyPatch, replacement: Any) -> None:
    """Let *replacement*, given the original's call, publish requests."""
    original = MemoryAdapter.publish

    async def publish(self: MemoryAdapter, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        if any(isinstance(o.target, Address) and o.target.kind is Kind.REQUEST for o in batch):
            return await replacement(lambda: original(self, batch))
        return await original(self, batch)

    monkeypatch.setattr(MemoryAdapter, "publish", publish)
    several = replace(MemoryAdapter.capabilities, publish_window=4)  # the answer passes the request
    monkeypatch.setattr(MemoryAdapter, "capabilities", several)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "middleware"])
def test_an_answer_is_not_kept_back_by_a_confirmation(monkeypatch: pytest.MonkeyPatch, wrapped: bool) -> None:
    """An answer proves that the request was sent, whatever the broker says of it, or when."""
    confirmed = asyncio.Event()

    async def slowly(publish: Any) -> Any:
        results = await publish()
        await confirmed.wait()
        return results

    _publish(monkeypatch, slowly)

    async def main() -> None:
        bus = Bus("memory://", publish_middleware=[passing] if wrapped else [])
        bus.on(echo)(str.upper)
        async with bus:
            await bus.start()
            assert await bus.request(echo, "a", timeout=10) == "A"
            confirmed.set()

    run(main())


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "middleware"])
def test_a_request_that_is_not_sent_fails_at_once(monkeypatch: pytest.MonkeyPatch, wrapped: bool) -> None:
    """Nobody waits for the answer to what was never asked."""

    async def refuse(publish: Any) -> Any:
        del publish
        return [NoResponders("nobody listens")]

    _publish(monkeypatch, refuse)

    async def main() -> None:
        bus = Bus("memory://", publish_middleware=[passing] if wrapped else [])
        async with bus:
            with pytest.raises(NoResponders):
                await bus.request(echo, "a", timeout=60)

    run(main(), within=10)


def test_a_drain_waits_for_answers_that_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is settled once its answer is out; given back in between it would be handled a second time."""
    original, sent, handled = MemoryAdapter.publish, asyncio.Event(), list[str]()

    async def publish(self: MemoryAdapter, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        if any(isinstance(o.target, Address) and o.target.kind is Kind.REPLY for o in batch):
            await sent.wait()
        return await original(self, batch)

    monkeypatch.setattr(MemoryAdapter, "publish", publish)

    async def main() -> None:
        bus = Bus("memory://")
        bus.on(echo)(lambda text: handled.append(text) or text)
        async with bus:
            await bus.start()
            asking = asyncio.create_task(bus.request(echo, "a", timeout=10))
            await eventually(lambda: handled == ["a"])
            draining = asyncio.create_task(bus.drain())
            await asyncio.sleep(0.05)
            sent.set()
            assert await asking == "a"
            await draining
            await bus.start()
            assert await bus.request(echo, "b", timeout=10) == "b"
            assert handled == ["a", "b"]

    run(main())
