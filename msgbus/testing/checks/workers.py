"""D, G, J. Worker processes that are killed, stopped and resumed: nothing is lost, and nobody is hurt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgbus import Queue
from msgbus.testing._check import check
from msgbus.testing.checks.dead_letters import wait_dead

if TYPE_CHECKING:
    from msgbus.testing.case import Case
    from msgbus.testing.processes import WorkerProcess

WORK = Queue("work", str)
_KILLS = 6


async def line(t: Case, worker: WorkerProcess, pattern: str) -> str:
    """Return the first line of *worker* that matches."""
    return await asyncio.to_thread(worker.wait_for_line, pattern, 30 * t.harness.patience)


@check("D20", needs="multi_process", timeout=120)
async def a_killed_workers_message_is_handled(t: Case) -> None:
    """A message whose worker is killed is handled by the next one, as attempt 2 where the broker counts exactly."""
    async with t.bus() as bus:
        await bus.send(WORK, "x")
        first = t.worker("hang")
        await line(t, first, "began x")
        first.kill()
        second = t.worker("work")
        began = await line(t, second, "began x")
        await line(t, second, "done x")

    if t.capabilities.delivery_count == "exact":
        assert began == "began x 2"
    t.note(second_attempt=began)


@check("D21", needs="multi_process delivery_count=exact max_delay", timeout=180)
async def what_kills_its_workers_is_dead_lettered(t: Case) -> None:
    """A message that kills every worker that touches it is dead-lettered after its attempts; others are handled."""
    deaths = 0
    async with t.bus() as bus:
        await bus.send(WORK, "poison")
        box = await bus.dead_letters(WORK)
        while deaths < 6 and not await box.peek():
            worker = t.worker("die", attempts=2)
            await line(t, worker, "ready")

            async def dead_or_gone(worker: WorkerProcess = worker) -> bool:
                return worker.returncode is not None or bool(await box.peek())

            await t.eventually(dead_or_gone, what="the worker died or buried the message", within=30)
            deaths += worker.returncode is not None
            worker.kill()
        (dead,) = await wait_dead(t, box, 1)

    assert deaths == 2
    assert (dead.report.reason, dead.report.attempts) == ("crashed", 2)


@check("G20", needs="multi_process lease=renewable", timeout=120)
async def a_stopped_worker_loses_its_message(t: Case) -> None:
    """A worker stopped (SIGSTOP) longer than its lease loses its message; resumed, it is told and disturbs nobody."""
    seen: list[str] = []
    other = t.bus(lease=t.lease)

    @other.on(WORK)
    async def handle(payload: str) -> None:
        seen.append(payload)
        await asyncio.sleep(2 * t.lease)

    async def is_settled() -> bool:
        stats = await other.stats(WORK)
        return not stats.ready and not stats.in_flight

    async with other:
        await other.send(WORK, "x")
        worker = t.worker("hang")
        await line(t, worker, "began x")
        worker.pause()
        await other.start()
        await t.eventually(lambda: seen, within=30)
        worker.resume()
        await line(t, worker, "cancelled x")
        await asyncio.sleep(2.5 * t.lease)  # in which the worker might disturb
        await t.eventually(is_settled, within=30)
        worker.kill()

    assert seen == ["x"]


@check("J1", needs="multi_process", timeout=300, duplicates=2_000)
async def killing_workers_loses_nothing(t: Case) -> None:
    """Workers that are killed under load, one after the other, lose no message; duplicates are counted."""
    payloads = [str(number) for number in range(t.many(400))]
    done: list[str] = []
    async with t.bus() as bus:
        await bus.send_many(WORK, payloads)
        for turn in range(_KILLS + 1):
            worker = t.worker("work", attempts=100, concurrency=4)
            # Each is killed after a part of the work, the last one finishes it: on a slow machine as well.
            share = len(payloads) // (2 * _KILLS) if turn < _KILLS else len(payloads)
            await _let_work(t, worker, share, {*payloads} - {*done})
            worker.kill()
            done += _handled(worker)

    t.count_handled(done, payloads)


async def _let_work(t: Case, worker: WorkerProcess, share: int, rest: set[str]) -> None:
    """Wait until *worker* has handled *share* messages, or the *rest*."""

    def has_worked() -> bool:
        handled = _handled(worker)
        return len(handled) >= share or rest <= {*handled}

    await t.eventually(has_worked, what=f"a worker handled {share} messages", within=60)


def _handled(worker: WorkerProcess) -> list[str]:
    return [text.removeprefix("done ") for text in worker.lines if text.startswith("done ")]
