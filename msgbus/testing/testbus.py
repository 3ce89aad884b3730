"""Run an application's own bus in a test: on the memory broker, in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, TypeVar

from msgbus._bus import Bus
from msgbus._channel import Channel
from msgbus._dead_letters import DeadLetterBox, DeadMessage
from msgbus._encoder import Encoder
from msgbus._message import Message
from msgbus._session import Session
from msgbus._time import Clock, Duration, seconds
from msgbus.adapter import Address, Outgoing, Stats
from msgbus.errors import ClosedError, HandlerSignal, MsgbusError
from msgbus.testing.clock import VirtualClock

__all__ = ["TestBus"]

T = TypeVar("T")
_PATIENCE = 30.0
"""Real seconds `TestBus.drain` waits for a handler before it says which one hangs."""


_CALM = 3
"""Looks in a row that must find the same before `TestBus.advance` believes that nothing more happens."""


class _State(NamedTuple):
    ready: int
    held: int
    running: int


class TestBus:
    """Runs an application's bus on the memory broker with a clock that only the test moves.

    Handlers, retries, delays, dead letters, groups, keys and idempotency behave as in production, but waiting takes
    no time. The application's code goes on using its own bus object::

        async with TestBus(bus) as t:
            await bus.send(orders, Order(...))
            await t.drain()
            assert t.dead_letters(orders) == []

    Args:
        bus: The application's bus, not open.
        raise_errors: Let `drain` and `advance` raise the first exception that a handler raised (signals such as
            `Reject` and `RetryAfter` are no errors), instead of only retrying and dead-lettering it.
    """

    __test__ = False  # pytest: this is no test class

    def __init__(self, bus: Bus, *, raise_errors: bool = False) -> None:
        self.bus = bus
        self.clock = VirtualClock()
        self._raise_errors = raise_errors
        self._errors: list[BaseException] = []
        self._session: Session | None = None
        self._recorder: _Recorder | None = None
        self._dead: dict[tuple[str, str], list[DeadMessage]] = {}

    async def __aenter__(self) -> Self:
        """Open the bus on the memory broker and start its handlers."""
        overrides = dict(self.bus._overrides) | {"url": "memory://", "routes": {}, "idempotency_url": "memory://"}  # noqa: SLF001
        overrides["topology"] = "create"
        self._session = await self.bus._enter(self.clock, overrides, self._failed)  # noqa: SLF001
        self._session.encode = self._recorder = _Recorder(self._session.settings.service, self.clock)
        await self.bus.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the handlers and forget all messages."""
        self._session = None
        await self.bus.__aexit__(None, None, None)

    async def drain(self) -> None:
        """Let everything happen that is going to: until no message is ready, running or waiting for its time.

        Raises:
            MsgbusError: A handler has not finished within 30 (real) seconds; the text says which.
            Exception: With ``raise_errors``, what the first failing handler raised.
        """
        while True:
            await self._settle()
            due = [stats.next_due for stats in await self._stats() if stats.next_due is not None]
            if not due:
                return
            await self._pass(max(0.0, min(due) - self.clock.now()))

    async def advance(self, duration: Duration) -> None:
        """Let *duration* seconds pass, and everything happen that falls into them.

        Raises:
            Exception: As `drain`.
        """
        end = self.clock.now() + seconds(duration, "advance(duration)")
        while True:
            await self._settle(wait_for_handlers=False)
            due = [stats.next_due for stats in await self._stats() if stats.next_due is not None]
            step = min([end, *(moment for moment in due if moment > self.clock.now())])
            await self._pass(step - self.clock.now())
            if step >= end:
                break
        await self._settle(wait_for_handlers=False)

    def sent(self, channel: Channel[T]) -> list[T]:
        """Return the payloads that were sent, published or requested on *channel*, in order."""
        return [payload for _, payload in self._records.get(channel.name, [])]

    def messages(self, channel: Channel[Any]) -> list[Message]:
        """Return the messages that were sent, published or requested on *channel*, in order."""
        return [
            Message.from_wire(outgoing.body, outgoing.headers, outgoing.key)
            for outgoing, _ in self._records.get(channel.name, [])
        ]

    def dead_letters(self, channel: Channel[Any], *, group: str = "") -> list[DeadMessage]:
        """Return the dead letters of a subscription as of the last `drain` or `advance`, oldest first."""
        found = self._dead.get((channel.name, group))
        if found is None:
            known = ", ".join(f"{name!r}{f' group={g!r}' if g else ''}" for name, g in self._dead) or "none so far"
            raise MsgbusError(f"no drained subscription of {channel!r} with group={group!r}; there are: {known}")
        return found

    async def _pass(self, duration: float) -> None:
        # Leases are renewed on time while something is held; when nothing is, nobody notices the time between.
        held = any(r.held for r in self._open.receivers.values())
        await (self.clock.advance if held else self.clock.jump)(duration)

    async def _settle(self, *, wait_for_handlers: bool = True) -> None:
        """Wait until nothing more happens by itself, then look at the dead letters and raise what is due."""
        await (self._finish() if wait_for_handlers else self._calm())
        for registration in self.bus.subscriptions:
            box = DeadLetterBox(*await self._open.source(registration.channel, registration.group or None))
            self._dead[registration.channel.name, registration.group] = await box.peek(limit=100_000)
        if self._raise_errors and self._errors:
            raise self._errors.pop(0)

    async def _finish(self) -> None:
        """Wait until no message is ready or being handled."""
        give_up = time.monotonic() + _PATIENCE
        while (state := await self._state()).ready or state.held:
            if time.monotonic() > give_up:
                stuck = [label for label, r in self._open.receivers.items() if r.running]
                raise MsgbusError(f"handlers of {', '.join(stuck) or 'no channel'} still run after {_PATIENCE:g} s")
            await asyncio.sleep(0.001 if state.running else 0)

    async def _calm(self) -> None:
        """Wait until nothing changes any more; handlers may go on waiting for something."""
        last, same = None, 0
        while same < _CALM:
            state = await self._state()
            same = same + 1 if state == last else 0
            last = state

    async def _state(self) -> _State:
        await self.clock.settle()
        await self._open.flush()
        receivers = self._open.receivers.values()
        return _State(
            ready=sum(stats.ready or 0 for stats in await self._stats()),
            held=sum(receiver.held for receiver in receivers),
            running=sum(receiver.running for receiver in receivers),
        )

    async def _stats(self) -> list[Stats]:
        return [
            await self.bus.stats(r.channel, group=r.group or None)
            for r in self.bus.subscriptions
            if r.label in self._open.receivers
        ]

    def _failed(self, error: BaseException) -> None:
        if not isinstance(error, HandlerSignal):
            self._errors.append(error)

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise ClosedError("use the TestBus inside 'async with TestBus(bus) as t:'")
        return self._session

    @property
    def _records(self) -> Mapping[str, list[tuple[Outgoing, Any]]]:
        return self._recorder.records if self._recorder is not None else {}


class _Recorder(Encoder):
    """An encoder that remembers what it encoded."""

    def __init__(self, service: str, clock: Clock) -> None:
        super().__init__(service, clock)
        self.records: dict[str, list[tuple[Outgoing, Any]]] = {}

    def __call__(self, channel: Channel[Any], address: Address, payload: Any, **options: Any) -> Outgoing:
        outgoing = super().__call__(channel, address, payload, **options)
        self.records.setdefault(channel.name, []).append((outgoing, payload))
        return outgoing
