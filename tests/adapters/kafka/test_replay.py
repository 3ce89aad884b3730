"""Replay from the command line: a topic read without disturbing any group, and a group that begins elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime

from msgbus.adapter import SubscribeOptions


async def msgbus(kit, *arguments):
    """Run the command; return what it printed, one JSON value a line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "msgbus.cli", *arguments, "--url", kit.broker.url, "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MSGBUS_URL": kit.broker.url},
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return [json.loads(line) for line in out.decode().splitlines()]


async def ready(adapter, source):
    return (await adapter.stats(source)).ready


def test_tail_reads_a_topic_from_anywhere_and_leaves_nothing_behind(kit):
    async def main():
        (source,) = kit.topic("mail", partitions=1)
        name = source.address.name
        async with kit.adapter(source) as adapter, kit.admin() as admin:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(3)))
            await asyncio.sleep(0.01)
            noon = datetime.now(UTC).isoformat()
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(3, 5)))

            whole = await msgbus(kit, "tail", name, "--from", "earliest", "--limit", "5")
            assert [(m["body"], m["position"]) for m in whole] == [(n, n) for n in range(5)]
            assert [m["body"] for m in await msgbus(kit, "tail", name, "--from", "2", "--limit", "3")] == [2, 3, 4]
            assert [m["body"] for m in await msgbus(kit, "tail", name, "--from", noon, "--limit", "2")] == [3, 4]
            assert [m["body"] for m in await msgbus(kit, "tail", name, "--from", "0", "--limit", "1")] == [0]
            assert await ready(adapter, source) == 5
            assert not [topic for topic in await admin.list_topics() if "tail-" in topic]

    kit.run(main())


def test_seek_moves_a_group(kit):
    async def main():
        (source,) = kit.topic("mail", partitions=1)
        label = f"{source.address.name}@mail"
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, n) for n in range(6)))
            subscription = await kit.subscribe(adapter, source)
            await kit.drain(subscription, 4)
            await subscription.aclose()
            assert await ready(adapter, source) == 2
            for place, left in (("earliest", 6), ("latest", 0), ("2020-01-01", 6), ("3", 3)):
                (told,) = await msgbus(kit, "seek", label, place)
                assert told == {"channel": source.address.name, "group": "mail", "start": place}
                assert await ready(adapter, source) == left
            subscription = await adapter.subscribe(source, SubscribeOptions())
            assert [m.body for m in await kit.drain(subscription, 3)] == [b"3", b"4", b"5"]

    kit.run(main())
