"""A process of its own for the tests: ``worker.py ROLE DATABASE ...``. What it did is on its standard output."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import sys
import time

from msgbus.adapter import ID, Ack, AdapterConfig, Address, BusURL, Kind, Nack, Outgoing, Source, SubscribeOptions
from msgbus.store import Claim, Granted
from msgbus_sqlite import SQLiteAdapter, SQLiteStore


def address(keyed: str) -> Address:
    return Address(Kind.QUEUE, f"keyed-{keyed}", keyed == "yes")


async def produce(adapter: SQLiteAdapter, keyed: str, first: str, count: str) -> None:
    """Publish numbered messages in batches of 1 to 50; the key is the number modulo 10 of each producer."""
    numbers = list(range(int(first), int(first) + int(count)))
    while numbers:
        size = random.randint(1, 50)
        batch, numbers = numbers[:size], numbers[size:]
        messages = [
            Outgoing(address(keyed), b"", {ID: str(n)}, str(n), key=f"{first}-{n % 10}" if keyed == "yes" else None)
            for n in batch
        ]
        assert not any(await adapter.publish(messages))


async def consume(adapter: SQLiteAdapter, keyed: str) -> None:
    """Receive and ack until told to stop; then print for each message who held it from when to when.

    Not before: nobody reads the pipe until then, and a consumer that waits for room in it keeps its messages.
    """
    lines: list[tuple[object, ...]] = []
    stopped = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    consumer = await adapter.subscribe(Source(address(keyed)), SubscribeOptions(prefetch=100))
    while not stopped.done():
        received = await consumer.receive(random.randint(1, 40), 0.2)
        start = time.monotonic()
        random.shuffle(received) if keyed == "no" else None
        good = [message for message in received if random.random() < 0.95 or keyed == "yes"]
        end = time.monotonic()
        errors = await consumer.settle([Ack(m) if m in good else Nack(m) for m in received])
        assert not any(errors), errors
        lines += [(message.headers[ID], message.key, message.deliveries, start, end) for message in good]
    await consumer.aclose()
    for line in lines:
        print(*line)


async def hold(adapter: SQLiteAdapter, keyed: str, lease: str) -> None:
    """Receive what there is and keep it until killed."""
    consumer = await adapter.subscribe(Source(address(keyed)), SubscribeOptions(lease=float(lease)))
    received = await consumer.receive(100, 10)
    print(len(received), flush=True)
    await asyncio.sleep(60)


async def echo(adapter: SQLiteAdapter, keyed: str) -> None:
    """Answer one message after the other, at the address in its body."""
    consumer = await adapter.subscribe(Source(address(keyed)), SubscribeOptions())
    print("ready", flush=True)
    while True:
        for message in await consumer.receive(10, 5):
            target = Address(Kind.REPLY, message.body.decode())
            assert not any(await adapter.publish([Outgoing(target, b"", {ID: "r"}, "r")]))
            await consumer.settle([Ack(message)])


async def claim(store: SQLiteStore, keys: str) -> None:
    """Claim every key, one after the other; print those that were granted."""
    for number in range(int(keys)):
        claim = Claim("scope", str(number), f"{os.getpid()}", "print", 60)
        (verdict,) = await store.claim([claim])
        if isinstance(verdict, Granted):
            print(number)


def lock(path: str, seconds: str) -> None:
    """Hold the write lock for a while."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    print("locked", flush=True)
    time.sleep(float(seconds))
    db.execute("ROLLBACK")
    db.close()


async def main(role: str, path: str, *arguments: str) -> None:
    config = AdapterConfig(instance=str(os.getpid()))
    made = (SQLiteStore if role == "claim" else SQLiteAdapter)(BusURL.parse(f"sqlite:///{path}"), config)
    await made.open()
    try:
        await globals()[role](made, *arguments)
    finally:
        await made.aclose()


if __name__ == "__main__":
    if sys.argv[1] == "lock":
        lock(*sys.argv[2:])
    else:
        asyncio.run(main(*sys.argv[1:]))
