"""Three Kafka brokers; the one that leads is killed, twice, while messages flow. What is lost, what comes twice?

    python -m scripts.kafka_failover [MESSAGES]

Takes about a minute and 1.5 GB of memory, so it is run by hand and not among the tests. Exit code 1 if a message that
was confirmed was not handled, or a key's order broke.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from msgbus import Bus, Queue, Retry
from scripts.brokers._net import HOST
from scripts.brokers.kafka import Kafka

_KEYS = 50
_DEADLINE = 180.0


class Node(Kafka):
    """One of several brokers; each is a controller, too."""

    number = 0
    voters = ""

    def _properties(self) -> str:
        changed = {
            "node.id": str(self.number),
            "controller.quorum.voters": self.voters,
            "offsets.topic.replication.factor": "3",
            "transaction.state.log.replication.factor": "3",
            "transaction.state.log.min.isr": "2",
            "share.coordinator.state.topic.replication.factor": "3",
            "share.coordinator.state.topic.min.isr": "2",
        }
        lines = (line.partition("=") for line in super()._properties().splitlines())
        return "".join(f"{name}{equals}{changed.get(name, value)}\n" for name, equals, value in lines)

    @property
    def voter(self) -> str:
        """Return what the others call it as a controller."""
        return f"{self.number}@{HOST}:{self._controller_port}"


@contextlib.asynccontextmanager
async def _cluster() -> AsyncIterator[list[Node]]:
    nodes = [Node() for _ in range(3)]
    for number, node in enumerate(nodes, 1):
        node.number = number
    for node in nodes:
        node.voters = ",".join(other.voter for other in nodes)
    try:
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in nodes))
        yield nodes
    finally:
        for node in nodes:
            node.close()


async def _leader(servers: str, topic: str) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        (described,) = await admin.describe_topics([topic])
        return int(min(described["partitions"], key=lambda p: p["partition"])["leader"])
    finally:
        await admin.close()


async def _run(total: int) -> bool:
    async with _cluster() as nodes:
        servers = ",".join(f"{HOST}:{node.port}" for node in nodes)
        native = {"partitions": 6, "replication": 3, "config": {"min.insync.replicas": 2}}
        queue: Queue[dict[str, Any]] = Queue("failover", dict, key=lambda item: item["key"], native=native)
        bus = Bus(f"kafka://{servers}?replication=3&session_timeout=6")
        seen: Counter[int] = Counter()
        order: dict[str, list[int]] = {}
        gaps, last = [0.0], time.monotonic()

        @bus.on(queue, concurrency=50, retry=Retry(attempts=3, base=0.1))
        async def handle(item: dict[str, Any]) -> None:
            nonlocal last
            now = time.monotonic()
            gaps.append(now - last)
            last = now
            seen[item["n"]] += 1
            order.setdefault(item["key"], []).append(item["n"])

        async with bus:
            await bus.start()
            publishing = asyncio.create_task(_publish(bus, queue, total))
            for share in (1 / 3, 2 / 3):
                await _until(seen, total * share)
                alive = ",".join(f"{HOST}:{node.port}" for node in nodes if node.running)
                number = await _leader(alive, queue.name)
                print(f"{len(seen):,} handled; killing broker {number}, which leads partition 0")
                victim = nodes[number - 1]
                await asyncio.to_thread(victim.kill)
                await asyncio.sleep(8)
                await asyncio.to_thread(victim.start)
                print(f"{len(seen):,} handled; broker {number} is back")
            await publishing
            await _until(seen, total)
    firsts = [list(dict.fromkeys(numbers)) for numbers in order.values()]
    in_order = all(numbers == sorted(numbers) for numbers in firsts)
    print(
        f"{total:,} confirmed, {len(seen):,} handled, {sum(seen.values()) - len(seen)} of them again; "
        f"order kept: {in_order}; the longest pause was {max(gaps):.1f} s"
    )
    return in_order and len(seen) == total


async def _publish(bus: Bus, queue: Queue[dict[str, Any]], total: int) -> None:
    for start in range(0, total, 100):
        await bus.send_many(queue, [{"n": n, "key": f"k{n % _KEYS}"} for n in range(start, start + 100)])
        await asyncio.sleep(0.1)


async def _until(seen: Counter[int], count: float) -> None:
    deadline = time.monotonic() + _DEADLINE
    while len(seen) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(seen)} of {count:.0f} were handled in {_DEADLINE:g} s")
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    sys.exit(not asyncio.run(_run(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)))
