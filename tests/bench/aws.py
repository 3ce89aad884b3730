"""What batching gains on SQS: msgbus beside loops of plain boto3 calls, on one server in one run.

Each round fills and empties queues of the same server in turn: first boto3 with one call per message, as most programs
are written, then msgbus. The ratio is what counts; both sides pay for the same server, client library and interpreter.

Usage: python tests/bench/aws.py [--server ministack] [--count 1000] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3

sys.path.insert(0, str(Path(__file__).parents[2]))

from msgbus import Bus, Queue
from scripts.brokers import Broker, start

BODY = "x" * 480
SEND_GOAL, CONSUME_GOAL = 5.0, 3.0


def plain_send(client: Any, url: str, count: int) -> float:
    """Send messages one by one; return messages per second."""
    began = time.perf_counter()
    for _ in range(count):
        client.send_message(QueueUrl=url, MessageBody=BODY)
    return count / (time.perf_counter() - began)


def plain_consume(client: Any, url: str, count: int) -> float:
    """Receive and delete messages one by one."""
    began, left = time.perf_counter(), count
    while left:
        for message in client.receive_message(QueueUrl=url, WaitTimeSeconds=1).get("Messages", ()):
            client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            left -= 1
    return count / (time.perf_counter() - began)


async def our_send(url: str, name: str, count: int) -> float:
    """Send messages by `Bus.send_many`."""
    queue = Queue(name, str)
    async with Bus(url) as bus:
        await bus.send(queue, BODY)
        began = time.perf_counter()
        await bus.send_many(queue, (BODY for _ in range(count)))
        return count / (time.perf_counter() - began)


async def our_consume(url: str, name: str, count: int) -> float:
    """Handle messages with a handler that does nothing."""
    queue, seen, done = Queue(name, str), 0, asyncio.Event()
    bus = Bus(url)

    @bus.on(queue, concurrency=32, prefetch=200)
    async def handle(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    async with bus:
        began = time.perf_counter()
        await bus.start()
        await done.wait()
        await bus.drain()  # with the last deletes
        return count / (time.perf_counter() - began)


def measure(broker: Broker, count: int) -> dict[str, float]:
    """Run each of the four once."""
    endpoint = broker.url.partition("endpoint=")[2]
    client = boto3.client("sqs", endpoint_url=endpoint, region_name="us-east-1")
    plain = client.create_queue(QueueName=f"plain-{uuid4().hex}")["QueueUrl"]
    name = f"ours-{uuid4().hex}"
    url = f"{broker.url}&wait=1&sns=false"
    return {
        "boto3 send": plain_send(client, plain, count),
        "msgbus send": asyncio.run(our_send(url, name, count)),
        "boto3 consume": plain_consume(client, plain, count),
        "msgbus consume": asyncio.run(our_consume(url, name, count + 1)),
    }


def main() -> int:
    """Print the medians; exit with 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--server", default="ministack", choices=["elasticmq", "ministack", "moto"])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "any")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "any")
    with start(arguments.server) as broker:
        measure(broker, arguments.count // 2)  # warms up a JVM
        rounds = [measure(broker, arguments.count) for _ in range(arguments.rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for name, rate in medians.items():
        print(f"{name:16} {rate:8,.0f} messages/s")
    ratios = {
        what: statistics.median(one[f"msgbus {what}"] / one[f"boto3 {what}"] for one in rounds)
        for what in ("send", "consume")
    }
    for what, goal in (("send", SEND_GOAL), ("consume", CONSUME_GOAL)):
        print(f"{what:8} {ratios[what]:5.1f} times boto3's loop (goal {goal:g})")
    if arguments.json:
        figures = {"server": arguments.server, "count": arguments.count, "rates": medians, "ratios": ratios}
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0 if ratios["send"] >= SEND_GOAL and ratios["consume"] >= CONSUME_GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
