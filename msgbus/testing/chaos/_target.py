"""What a run is made against: a broker's address, and what can be done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgbus.testing.chaos._schedule import BROKER_FAULTS, PROXY_FAULTS
from msgbus.testing.faults import FaultProxy
from msgbus.testing.history import EventKind, Journal

__all__ = ["Controllable", "Target"]


class Controllable(Protocol):
    """A broker that can be started and stopped; its methods block, and it keeps its address and data."""

    def start(self) -> None:
        """Start it, and return when it serves clients."""
        ...

    def restart(self) -> None:
        """Stop it in an orderly way and start it again."""
        ...

    def kill(self) -> None:
        """SIGKILL it."""
        ...

    def pause(self) -> None:
        """SIGSTOP it."""
        ...

    def resume(self) -> None:
        """SIGCONT it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """A broker under test.

    Args:
        name: What it is called in the table.
        url: Where the workload reaches it: through *proxy*, if there is one.
        broker: Its process, if it has one that can be stopped.
        broker_faults: What may be done to the process: not ``kill`` where it does not keep its data then.
        proxy: What stands before it, if something does.
        store_url: The idempotency store; a SQLite file of the run's by default.
        lease: Seconds, for the buses; short, so that stopped workers lose their messages.
        patience: Multiplies all deadlines, for slow brokers.
    """

    name: str
    url: str
    broker: Controllable | None = None
    broker_faults: Sequence[str] = BROKER_FAULTS
    proxy: FaultProxy | None = None
    store_url: str | None = None
    lease: float = 3.0
    patience: float = 1.0

    @property
    def faults(self) -> Sequence[str]:
        """What can be done to it, as a schedule names it."""
        found = [f"broker {fault}" for fault in self.broker_faults] if self.broker else []
        return found + ([f"proxy {fault}" for fault in PROXY_FAULTS] if self.proxy else [])

    async def harm(self, what: str, seconds: float, choice: float, journal: Journal) -> None:
        """Do what a `Step` says, undo it, and write both down."""
        whom, _, fault = what.partition(" ")
        journal.write(EventKind.FAULT, who=whom, detail=fault)
        try:
            if whom == "broker" and self.broker is not None:
                await self._harm_broker(self.broker, fault, seconds)
            elif self.proxy is not None:
                await self._harm_proxy(self.proxy, fault, seconds, choice)
        finally:
            journal.write(EventKind.FAULT, who=whom, detail="resume")

    @staticmethod
    async def _harm_broker(broker: Controllable, fault: str, seconds: float) -> None:
        if fault == "restart":
            await asyncio.to_thread(broker.restart)
        elif fault == "kill":
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
        else:
            await asyncio.to_thread(broker.pause)
            try:
                await asyncio.sleep(seconds)
            finally:
                await asyncio.to_thread(broker.resume)

    @staticmethod
    async def _harm_proxy(proxy: FaultProxy, fault: str, seconds: float, choice: float) -> None:
        match fault:
            case "drop":
                await asyncio.to_thread(proxy.drop)
                return
            case "half-close":
                await asyncio.to_thread(proxy.half_close, "broker" if choice < 0.5 else "client")
                return
            case "cut":
                await asyncio.to_thread(proxy.cut)
            case "stall":
                await asyncio.to_thread(proxy.stall)
            case "deafen":
                await asyncio.to_thread(proxy.stall, "client")
            case _:
                proxy.delay(0.02 + 0.2 * choice)
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(proxy.heal)
