"""A whole run: workload, faults, healing, draining, the check."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgbus import Bus
from msgbus._registry import adapter_class
from msgbus._url import BusURL
from msgbus.adapter import AdapterConfig, Capabilities
from msgbus.errors import BrokerError
from msgbus.testing.chaos._crew import Crew, LocalCrew, ProcessCrew
from msgbus.testing.chaos._producers import Producers
from msgbus.testing.chaos._schedule import WORKER_FAULTS, Step, make_schedule
from msgbus.testing.chaos._target import Target
from msgbus.testing.chaos._workload import Channels, Effects, Setup, register, subscriptions
from msgbus.testing.history import (
    Account,
    EventKind,
    Findings,
    Journal,
    Recorder,
    Subscribed,
    check_history,
    read_history,
)

__all__ = ["Outcome", "run_chaos"]

_RECOVERY = 60.0
"""Seconds (of the target's patience) from the last fault until a message published afterwards must be handled."""
_DRAIN = 90.0
"""Seconds (of the target's patience) for all messages to come to rest once everything is healed."""
_STILL = 5.0
"""Seconds without a change after which the dead letters are looked through for what has not come to rest."""
_QUIET = 1.0
"""Seconds to look for what should not come, when all has come that should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run found.

    Args:
        target: The target's name.
        seed: What replays it.
        seconds: How long faults were made.
        findings: The check of its history.
        outage: The longest time in seconds in which no publish was confirmed.
        recovery: Seconds from the end of all faults until a message published then was handled; None if none was.
        drained: Seconds from there until all messages had come to rest; None if they never did.
        folder: Where its journals and logs are.
    """

    target: str
    seed: int
    seconds: float
    findings: Findings
    outage: float
    recovery: float | None
    drained: float | None
    folder: Path

    def raise_if_broken(self) -> None:
        """Raise `HistoryError` with the offending history, if there is one."""
        self.findings.raise_if_broken()


async def run_chaos(
    target: Target,
    folder: Path,
    *,
    seed: int,
    seconds: float = 10.0,
    workers: int = 3,
    rate: float = 60.0,
    steps: Sequence[Step] | None = None,
) -> Outcome:
    """Run the workload on a target while things break; heal, drain, and check what happened.

    Args:
        target: The broker, and what can be done to it.
        folder: An empty folder for journals and logs.
        seed: Decides what is published and which faults come when.
        seconds: How long things break.
        workers: How many processes consume (buses, where the broker lives in this process).
        rate: Messages published per second, if the broker takes them.
        steps: The faults, instead of those that the seed gives. Those of workers have one word (``kill``), those of
            the broker and of its proxy begin with it (``broker kill``, ``proxy cut``).

    Returns:
        What was found; `Outcome.raise_if_broken` makes a test fail.
    """
    capabilities = await _capabilities(target)
    if steps is None:
        steps = _schedule(target, capabilities, seed, seconds)
    run = _Run(target, folder, capabilities, steps, seed=seed, seconds=seconds, workers=workers, rate=rate)
    try:
        return await run.go()
    finally:
        await run.aclose()


class _Run:
    def __init__(
        self,
        target: Target,
        folder: Path,
        capabilities: Capabilities,
        steps: Sequence[Step],
        *,
        seed: int,
        seconds: float,
        workers: int,
        rate: float,
    ) -> None:
        self._target = target
        self._folder = folder
        self._seed = seed
        self._seconds = seconds
        self._steps = steps
        self._setup = _setup(target, folder, capabilities, seed)
        self._expected: list[Subscribed] = subscriptions(self._setup, capabilities)
        self._journal = Journal(folder / "run.jsonl", "run")
        self._recorder = Recorder(self._journal, self._setup.namespace)
        crew = ProcessCrew if capabilities.multi_process else LocalCrew
        self._crew: Crew = crew(self._setup, workers, self._journal, self._recorder)
        self._producers = Producers(
            self._setup, self._recorder, seed=seed, rate=rate, delays=capabilities.max_delay >= 5
        )
        self._effects = Effects(folder)

    async def go(self) -> Outcome:
        async with self._bus() as bus:
            await self._crew.start()
            await self._producers.start()
            began = time.time()
            await self._break_things()
            healed = time.time()
            await self._recover(healed)
            await self._producers.stop()
            drained = await self._drain(bus)
            at_rest = time.time()
            await asyncio.sleep(_QUIET)
            await self._crew.stop()
            await self._note_dead(bus)
            for id, count in self._effects.counts().items():
                self._journal.write(EventKind.EFFECT, id=id, channel="once", attempt=count)
        findings = check_history(read_history(self._folder), self._expected)
        return Outcome(
            target=self._target.name,
            seed=self._seed,
            seconds=self._seconds,
            findings=findings,
            outage=_longest_outage(findings, began, healed),
            recovery=_recovery(findings, healed),
            drained=at_rest - healed if drained else None,
            folder=self._folder,
        )

    async def aclose(self) -> None:
        await self._crew.stop()
        self._effects.close()
        self._journal.close()

    def _bus(self) -> Bus:
        """Return a bus that declares everything when it is opened: what is published then is missed by nobody."""
        bus = self._setup.bus(service="run")
        register(bus, self._setup, self._recorder, self._effects)
        return bus

    # -- breaking -----------------------------------------------------------------------------------------------

    async def _break_things(self) -> None:
        """Carry out the schedule: what is done to workers and what is done to the broker do not wait for each other."""
        (self._folder / "schedule.txt").write_text("".join(f"{step}\n" for step in self._steps))
        on_broker = [step for step in self._steps if " " in step.what]
        on_workers = [step for step in self._steps if " " not in step.what]

        async def harm_broker(what: str, seconds: float, choice: float) -> None:
            await self._target.harm(what, seconds, choice, self._journal)

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(on_workers, began, self._crew.harm))
            group.create_task(self._follow(on_broker, began, harm_broker))
            while (left := self._seconds - (time.monotonic() - began)) > 0:
                await asyncio.sleep(min(0.5, left))
                await self._crew.check()
                self._producers.check()

    async def _follow(
        self, steps: list[Step], began: float, harm: Callable[[str, float, float], Coroutine[Any, Any, None]]
    ) -> None:
        behind = 0.0  # what takes its time (a broker's restart) moves what comes after it: the pauses are the clients'
        for step in steps:
            await asyncio.sleep(max(0.0, began + step.at + behind - time.monotonic()))
            if time.monotonic() - began > self._seconds:
                return
            await harm(step.what, step.seconds, step.choice)
            behind = max(behind, time.monotonic() - began - step.at - step.seconds)

    async def _recover(self, healed: float) -> None:
        """Let producers go on until a message that was published after all faults is handled."""
        deadline = time.monotonic() + _RECOVERY * self._target.patience
        while time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            await self._crew.check()
            if _recovery(check_history(read_history(self._folder), self._expected), healed) is not None:
                return
        self._recorder.complain(f"nothing that was published after the faults was handled for {_RECOVERY:g} s")

    # -- draining -----------------------------------------------------------------------------------------------

    async def _drain(self, bus: Bus) -> bool:
        """Wait until no confirmed message is open any more; return whether that came to be."""
        deadline = time.monotonic() + _DRAIN * self._target.patience
        before: object = None
        since = 0.0
        while (started := time.monotonic()) < deadline:
            await self._crew.check()
            waiting = Account(read_history(self._folder), self._expected).unsettled()
            if not waiting:
                return True
            if waiting != before:
                before, since = waiting, started
            elif started - since > _STILL:
                await self._note_dead(bus)  # a killed worker may have buried it and not come to write that down
                since = time.monotonic()
            await asyncio.sleep(max(0.5, 2 * (time.monotonic() - started)))
        return False

    async def _note_dead(self, bus: Bus) -> None:
        """Write down which messages are among the dead letters; the broker may still be getting up."""
        channels = Channels()
        deadline = time.monotonic() + _RECOVERY * self._target.patience
        for wanted in self._expected:
            while not wanted.answers:
                try:
                    await self._recorder.note_dead(bus, getattr(channels, wanted.channel), wanted.group or None)
                    break
                except BrokerError as exc:
                    if time.monotonic() > deadline:
                        self._recorder.complain(f"cannot look at the dead letters of {wanted.label}: {exc}")
                        break
                    await asyncio.sleep(1)


async def _capabilities(target: Target) -> Capabilities:
    """Ask the adapter: some know only once they are connected."""
    url = BusURL.parse(target.url)
    adapter = adapter_class(url)(url, AdapterConfig(service="chaos"))
    try:
        await adapter.open()
        return adapter.capabilities
    finally:
        await adapter.aclose()


def _setup(target: Target, folder: Path, capabilities: Capabilities, seed: int) -> Setup:
    return Setup(
        url=target.url,
        namespace=f"chaos-{seed}-{int(time.time() * 1000) % 10_000_000}",
        store_url=target.store_url or f"sqlite:///{folder}/handled.db",
        folder=str(folder),
        lease=target.lease,
        ordered=capabilities.order == "key",
        grouped=capabilities.groups,
        asked=capabilities.requests != "none",
    )


def _schedule(target: Target, capabilities: Capabilities, seed: int, seconds: float) -> list[Step]:
    """Return the faults that the seed gives: two sequences at once, one of the workers and one of the broker."""
    on_workers = WORKER_FAULTS if capabilities.multi_process else ("term",)
    longest = min(1.5 * target.lease, 6.0)  # some are stopped for longer than their leases, some not
    gap = min(max(1.0, seconds / 20), 3.0)  # long runs leave time to recover in between
    workers = make_schedule(f"{seed} workers", seconds, on_workers, gap=gap, longest=longest)
    broker = make_schedule(f"{seed} broker", seconds, target.faults, gap=gap)
    return sorted([*workers, *broker], key=lambda step: step.at)


def _longest_outage(findings: Findings, began: float, healed: float) -> float:
    """Return the longest time in which no publish was confirmed."""
    times = [e.time for e in findings.account.events if e.kind is EventKind.CONFIRMED and began <= e.time <= healed]
    marks = [began, *times, healed]
    return max(later - earlier for earlier, later in pairwise(marks))


def _recovery(findings: Findings, healed: float) -> float | None:
    """Return how long it took until a message published after *healed* was handled."""
    account = findings.account
    late = {id for id, attempts in account.attempts.items() if attempts[0].began.time >= healed}
    ends = [
        run.ended.time
        for fates in account.fates.values()
        for id, fate in fates.items()
        if id in late
        for run in fate.runs
        if run.succeeded and run.ended is not None
    ]
    return min(ends) - healed if ends else None
