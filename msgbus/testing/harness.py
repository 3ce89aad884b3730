"""What the author of an adapter or a store supplies for the contract kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgbus._time import Clock, SystemClock
from msgbus.adapter import Address

__all__ = ["Harness", "StoreHarness"]


@dataclass(kw_only=True)
class Harness:
    """Where a broker is and what can be done to it.

    Overriding a method unlocks the checks that need it. The same harness serves all checks of a run, one after the
    other; each check uses fresh names.

    Args:
        url: The broker's URL. All adapters opened with it must reach the same broker (so ``memory://name``).
        tick: The shortest delay in seconds that the broker can measure; checks wait multiples of it.
        lease: The lease in seconds that checks use, the shortest that is safe on this broker. It is renewed every third
            of it: a machine or a broker that stands still for two thirds loses it.
        patience: Multiplies all deadlines, for slow brokers.
        load: Multiplies the numbers of messages.
        duplicates: How many duplicates the broker may make in one check without being asked to.
        store_url: An idempotency store for brokers that bring none; one in memory by default.
        virtual: Whether all the broker's time is the injected clock's, so that a virtual clock drives it.
    """

    url: str
    tick: float = 0.2
    lease: float = 1.0
    patience: float = 1.0
    load: float = 1.0
    duplicates: int = 0
    store_url: str | None = None
    virtual: bool = False

    def supplies(self, name: str) -> bool:
        """Tell whether the author supplied the method, or set the flag, *name*."""
        mine = getattr(type(self), name)
        if callable(mine):
            return bool(mine is not getattr(Harness, name))
        return bool(getattr(self, name))

    async def inject_raw(self, address: Address, body: bytes, headers: Mapping[str, str]) -> None:
        """Publish a message as a foreign producer does: by the client library, without msgbus's headers."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Stop the broker in an orderly way and start it again; return when it takes connections."""
        raise NotImplementedError

    async def kill(self) -> None:
        """Kill the broker (SIGKILL) and start it again; return when it takes connections."""
        raise NotImplementedError

    async def cut(self) -> None:
        """Cut all connections to the broker, and refuse new ones until `heal`."""
        raise NotImplementedError

    async def heal(self) -> None:
        """Undo `cut` or `pause`."""
        raise NotImplementedError

    async def pause(self) -> None:
        """Make the broker stop answering without closing connections, until `heal`."""
        raise NotImplementedError

    async def fill(self, address: Address) -> None:
        """Make the broker refuse further messages to *address*, which is declared and empty."""
        raise NotImplementedError


class StoreHarness:
    """Where an idempotency store is, and how to let its time pass.

    Args:
        url: The store's URL. All stores opened with it must share their records (so ``memory://name``).
        clock: The clock given to the stores. With one of the store's own (a database server's), leave it.
        unit: Seconds that stand for one second of a check: 1 on a virtual clock, less where time really passes.
            Not below the store's resolution.
        patience: Multiplies all deadlines.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, unit: float = 0.25, patience: float = 1.0) -> None:
        self.url = url
        self.clock = clock or SystemClock()
        self.unit = unit
        self.patience = patience

    async def advance(self, seconds: float) -> None:
        """Let *seconds* of the store's time pass (with a virtual clock: turn its hands instead)."""
        advance = getattr(self.clock, "advance", self.clock.sleep)
        await advance(seconds)
