"""A SQLite file per test, adapters on it, and a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from msgbus.adapter import (
    ID,
    Ack,
    AdapterConfig,
    Address,
    BusURL,
    Clock,
    Kind,
    Outgoing,
    Provision,
    Received,
    Source,
    SubscribeOptions,
    Subscription,
    SystemClock,
    Topology,
)
from msgbus.testing.clock import VirtualClock
from msgbus_sqlite import SQLiteAdapter


class Kit:
    """What the tests of one file need."""

    Clock = VirtualClock

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        asyncio.run(asyncio.wait_for(test, 60))

    @property
    def url(self) -> BusURL:
        return BusURL.parse(f"sqlite:///{self.path}")

    @asynccontextmanager
    async def adapter(
        self,
        *declare: Address | Source,
        clock: Clock | None = None,
        provision: Provision = Provision.CREATE,
        query: str = "",
    ) -> AsyncIterator[SQLiteAdapter]:
        config = AdapterConfig(clock=clock or SystemClock(), provision=provision)
        adapter = SQLiteAdapter(BusURL.parse(f"{self.url}{query}"), config)
        await adapter.open()
        try:
            await adapter.declare(
                Topology(
                    tuple(item for item in declare if isinstance(item, Address)),
                    tuple(item for item in declare if isinstance(item, Source)),
                )
            )
            yield adapter
        finally:
            await adapter.aclose()

    @staticmethod
    async def until(condition: Callable[[], Any]) -> None:
        """Return once *condition* holds; `run` bounds the time."""
        while not condition():  # noqa: ASYNC110 - it is about another thread or process
            await asyncio.sleep(0.001)

    @staticmethod
    async def consumer(adapter: SQLiteAdapter, source: Source, **options: Any) -> Subscription:
        return await adapter.subscribe(source, SubscribeOptions(**options))

    def message(self, target: Address | Source, text: str, key: str | None = None, **more: Any) -> Outgoing:
        self._count += 1
        identity = more.pop("id", f"id-{self._count}")
        return Outgoing(target, text.encode(), {ID: identity, **more.pop("headers", {})}, identity, key, **more)

    async def publish(self, adapter: SQLiteAdapter, *messages: Outgoing) -> None:
        assert [None] * len(messages) == list(await adapter.publish(messages))

    @staticmethod
    def texts(received: Sequence[Received]) -> list[str]:
        return [message.body.decode() for message in received]

    @staticmethod
    async def ack(subscription: Subscription, received: Sequence[Received]) -> None:
        assert [None] * len(received) == list(await subscription.settle([Ack(message) for message in received]))

    @staticmethod
    def queue(name: str = "orders", *, keyed: bool = False) -> Address:
        return Address(Kind.QUEUE, name, keyed)

    @staticmethod
    def topic(name: str, *, keyed: bool = False) -> Address:
        return Address(Kind.TOPIC, name, keyed)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "bus.db")
