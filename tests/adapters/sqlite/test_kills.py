"""Workers die in the middle of their work, and every message is accounted for."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

from msgbus import Bus, Queue

MESSAGES, KILLS, PREFETCH = 10_000, 10, 64
PATIENCE = 90.0

WORKER = """
    import os, sys
    from msgbus import Bus, Queue
    bus = Bus(sys.argv[1], lease=1.0, prefetch=int(sys.argv[3]))
    log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @bus.on(Queue("work", dict))
    async def handle(item: dict) -> None:
        os.write(log, b"%d\\n" % item["n"])

    bus.run()
"""


def spawn(url: str, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WORKER), url, str(log), str(PREFETCH)])


def handled(log: Path) -> list[int]:
    return [int(line) for line in log.read_bytes().split(b"\n") if line] if log.exists() else []


def wait_for(log: Path, count: int, deadline: float) -> None:
    while len(set(handled(log))) < count:
        assert time.monotonic() < deadline, f"only {len(set(handled(log)))} of {count} messages were handled in time"
        time.sleep(0.01)  # until the condition holds, with a deadline


def test_ten_killed_workers_lose_nothing(tmp_path: Path, record_property) -> None:
    """SIGKILL ten workers in the middle of 10,000 messages: each is handled, and none is left or dead."""
    url, log = f"sqlite:///{tmp_path}/bus.db", tmp_path / "handled"
    queue = Queue("work", dict)
    bus = Bus(url)
    with bus.sync as sync:
        sync.send_many(queue, [{"n": n} for n in range(MESSAGES)])
        chance, deadline = random.Random(7), time.monotonic() + PATIENCE
        workers = [spawn(url, log) for _ in range(2)]
        try:
            for kill in range(1, KILLS + 1):
                wait_for(log, kill * MESSAGES // (KILLS + 2), deadline)
                victim = workers.pop(chance.randrange(2))
                victim.kill()
                victim.wait()
                workers.append(spawn(url, log))
            wait_for(log, MESSAGES, deadline)
            while (stats := sync.stats(queue)).ready or stats.in_flight:
                assert time.monotonic() < deadline, stats
                time.sleep(0.05)  # until the condition holds, with a deadline
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(20)

    counts = Counter(handled(log))
    duplicates = sum(counts.values()) - len(counts)
    record_property("duplicates", duplicates)

    assert set(counts) == set(range(MESSAGES))
    assert stats.dead == 0
    assert duplicates <= KILLS * PREFETCH
    # The one that was started last may be told to stop before it listens to signals.
    assert all(worker.returncode in (0, -signal.SIGTERM) for worker in workers)
