"""What `Adapter.remove` promises, on the embedded brokers: a temporary group leaves nothing behind."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from msgbus._registry import adapter_class
from msgbus.adapter import (
    DEAD,
    ID,
    AdapterConfig,
    Address,
    BusURL,
    DeadLetter,
    Kind,
    Outgoing,
    Source,
    SubscribeOptions,
    Topology,
)
from msgbus.errors import TopologyError


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return BusURL.parse("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/bus.db")


@pytest.mark.parametrize("keyed", [False, True])
def test_removing_a_group_takes_its_messages_and_dead_letters_and_nobody_elses(url, keyed):
    async def body():
        topic = Address(Kind.TOPIC, "placed", keyed)
        goes, stays = Source(topic, "tail"), Source(topic, "mail")
        adapter = adapter_class(url)(url, AdapterConfig())
        await adapter.open()
        try:
            await adapter.declare(Topology(sources=(goes, stays)))
            batch = [Outgoing(topic, b"x", {ID: str(n)}, str(n), "k" if n % 2 else None) for n in range(6)]
            await adapter.publish(batch)
            consumer = await adapter.subscribe(goes, SubscribeOptions())
            received = await consumer.receive(6, 1.0)
            await consumer.settle([DeadLetter(received[0], {**received[0].headers, DEAD: "{}"})])
            await consumer.aclose()

            await adapter.remove(goes)
            await adapter.remove(goes)

            with pytest.raises(TopologyError):
                await adapter.stats(goes)
            assert len(await adapter.browse(stays, limit=100)) == 6
            await adapter.publish([Outgoing(topic, b"y", {ID: "6"}, "6")])
            assert len(await adapter.browse(stays, limit=100)) == 7
            await adapter.remove(stays)
            assert await adapter.publish([Outgoing(topic, b"z", {ID: "7"}, "7")]) == [None]
        finally:
            await adapter.aclose()

    asyncio.run(body())
    if url.scheme == "sqlite":
        with sqlite3.connect(url.path.removeprefix("/")) as db:
            for table in ("message", "entry", "keyed", "lane"):
                assert db.execute(f"SELECT count(*) FROM msgbus_{table}").fetchone() == (0,), table
        db.close()
