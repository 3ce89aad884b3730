"""Workers that die at the worst moments: forked, one after the other, from a parent that has everything imported.

    python -m tests.stores.killing sqlite3 FOLDER app.db 100
    python -m tests.stores.killing psycopg FOLDER postgresql://… 1000

Sends messages to a bus in FOLDER, starts workers that add one effect per message inside `Idempotency(within=)`, kills
as many as asked *after the effect was committed and before its message was acknowledged*, others in between, and lets
the last one finish. Prints what was counted, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from msgbus import Bus, Delivery, Idempotency, Queue, Retry
from msgbus._receiver import Receiver
from msgbus.adapter import ID
from tests.stores.databases import EFFECTS, Database, with_psycopg, with_sqlite3

queue = Queue("work", str)
LEASE = 1.0
AT_ONCE = 2
"""Workers that live at the same time: they meet each other's claims."""
DELAYS = (0.0, 0.15)
"""When a worker of the third kind dies, in seconds after its fork."""


def make(kind: str, where: str) -> Database:
    """Return the application's database."""
    return with_sqlite3(Path(where)) if kind == "sqlite3" else with_psycopg(where)


class Worker:
    """One process's life.

    Args:
        bus_url: The bus.
        database: The application's database.
        death: ``acknowledge``: after a commit, before its acknowledgement; ``commit``: after the effect, before the
            commit; ``anywhere``; ``""`` for none.
        after: The how-manieth effect of this worker is its last.
        tell: Where it says that it dies, so that its parent can count.
    """

    def __init__(self, bus_url: str, database: Database, death: str, after: int, tell: int) -> None:
        self._database = database
        self._death = death
        self._left = after
        self._tell = tell
        self._mine: set[str] = set()
        self.bus = Bus(bus_url, lease=LEASE, concurrency=2, prefetch=4)
        self.bus.on(queue, idempotent=Idempotency(within=database.within), retry=Retry(attempts=10_000))(
            self._handler()
        )

    def _handler(self) -> Any:
        async def handle(payload: str, db: Any, delivery: Delivery[str]) -> None:
            await self._database.write(db, payload)
            self._mine.add(delivery.message.id)
            if self._death == "commit":
                self._count_down("commit")

        handle.__annotations__ |= {"payload": str, "db": self._database.connection, "delivery": Delivery[str]}
        return handle

    def _count_down(self, death: str) -> None:
        self._left -= 1
        if self._left <= 0:
            os.write(self._tell, death[:1].encode())
            os.kill(os.getpid(), signal.SIGKILL)

    async def run(self) -> None:
        """Work until killed, or until nothing is left."""
        conclude = Receiver.conclude

        def dying(receiver: Receiver, received: Any, outcome: Any) -> None:
            if received.headers[ID] in self._mine:  # committed by this very worker
                self._mine.discard(received.headers[ID])
                self._count_down("acknowledge")
            conclude(receiver, received, outcome)

        if self._death == "acknowledge":
            Receiver.conclude = dying  # type: ignore[method-assign]
        async with self.bus:
            await self.bus.start()
            while True:
                stats = await self.bus.stats(queue)
                if not (stats.ready or stats.in_flight or stats.delayed):
                    return
                await asyncio.sleep(0.02)


def fork(worker: Any) -> int:
    """Run ``worker()`` in a child; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        asyncio.run(worker().run())
        status = 0
    finally:
        os._exit(status)


def plan(chance: random.Random) -> tuple[str, int]:
    """Return how a worker dies, and after how many effects."""
    death = chance.choices(["acknowledge", "commit", "anywhere"], [8, 1, 1])[0]
    return death, chance.choice([1, 1, 1, 2, 3])


class Killing:
    """The parent.

    Args:
        kind: The library.
        folder: Where the bus is.
        where: Where the application's database is.
        kills: How many workers are to die between effect and acknowledgement.
    """

    def __init__(self, kind: str, folder: Path, where: str, kills: int) -> None:
        self._bus_url = f"sqlite:///{folder}/bus.db"
        self._kind = kind
        self._where = where
        self._kills = kills
        self._messages = 0
        self._chance = random.Random(kills)
        self._deaths: Counter[str] = Counter()
        self._seen, self._tell = os.pipe()

    def run(self) -> dict[str, Any]:
        """Kill, and count."""
        began = time.monotonic()
        database = make(self._kind, self._where)
        database.rows(EFFECTS)
        self._send(3 * self._kills)
        alive: set[int] = set()
        while self._deaths["acknowledge"] < self._kills:
            while len(alive) < AT_ONCE:
                alive.add(self._spawn(*plan(self._chance)))
            self._reap(alive)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        killing = time.monotonic() - began
        last = self._spawn("", 0)
        _, status = os.waitpid(last, 0)
        counts = Counter(what for (what,) in database.rows("SELECT what FROM effects"))
        return {
            "messages": self._messages,
            "deaths": dict(self._deaths),
            "last worker": os.waitstatus_to_exitcode(status),
            "without effect": self._messages - len(counts),
            "with more than one": sum(count > 1 for count in counts.values()),
            "dead letters": asyncio.run(self._dead_letters()),
            "seconds": round(time.monotonic() - began, 1),
            "seconds of killing": round(killing, 1),
        }

    def _spawn(self, death: str, after: int) -> int:
        def worker() -> Worker:
            if death == "anywhere":  # by the kernel, between any two instructions
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, random.uniform(*DELAYS) + 1e-6)
            return Worker(self._bus_url, make(self._kind, self._where), death, after, self._tell)

        return fork(worker)

    def _reap(self, alive: set[int]) -> None:
        pid, status = os.waitpid(-1, 0)
        alive.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGALRM:
            self._deaths["anywhere"] += 1
        elif code == -signal.SIGKILL:
            told = os.read(self._seen, 1).decode()
            self._deaths["acknowledge" if told == "a" else "commit"] += 1
        elif code == 0:  # nothing is left: how many a worker of the third kind gets to is up to the machine
            self._send(self._kills)
        else:
            self._fail(f"a worker ended with {code}")

    def _fail(self, why: str) -> NoReturn:
        raise SystemExit(f"{why}; so far: {dict(self._deaths)}")

    def _send(self, count: int) -> None:
        asyncio.run(self._send_many([f"effect {number}" for number in range(self._messages, self._messages + count)]))
        self._messages += count

    async def _send_many(self, effects: list[str]) -> None:
        bus = Bus(self._bus_url)
        bus.on(queue)(_nothing)
        async with bus:
            await bus.send_many(queue, effects)

    async def _dead_letters(self) -> int:
        async with Bus(self._bus_url) as bus:
            return (await bus.stats(queue)).dead or 0


async def _nothing(payload: str) -> None:
    """Make the queue exist; never started."""


if __name__ == "__main__":
    print(json.dumps(Killing(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])).run()))
