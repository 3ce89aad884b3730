"""The tools of one check: fresh names, adapters that are closed at the end, deadlines, and an account of duplicates."""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from msgbus._bus import Bus
from msgbus._message import Message
from msgbus._registry import adapter_class, has_store
from msgbus._time import Clock, SystemClock
from msgbus._url import BusURL
from msgbus.adapter import (
    Adapter,
    AdapterConfig,
    Address,
    Capabilities,
    Kind,
    Outgoing,
    Provision,
    Source,
    Topology,
)
from msgbus.testing.harness import Harness
from msgbus.testing.processes import WorkerProcess
from msgbus.testing.tap import Tap

__all__ = ["Case"]

_DEADLINE = 15.0
"""Seconds for anything that must happen. Passing checks never wait so long, so it may be generous."""
_POLL = 0.01
E = TypeVar("E", bound=Exception)
_BATCH = 500


class Case:
    """One run of one check; an async context manager that closes what was opened.

    Attributes:
        harness: What the author supplied.
        adapter: An open adapter.
        prefix: Begins all names of this case, and is the namespace of its buses.
        duplicates: How many messages were received again although they had been acked.
        notes: Measurements for the report.
    """

    adapter: Adapter

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.prefix = f"kit-{secrets.token_hex(4)}"
        self.duplicates = 0
        self.notes: dict[str, Any] = {}
        self._acked: set[tuple[Source, str]] = set()
        self._stack = AsyncExitStack()
        self._count = 0

    async def __aenter__(self) -> Self:
        self.adapter = await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # -- what there is to know ----------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What the adapter declares."""
        return self.adapter.capabilities

    @property
    def tick(self) -> float:
        """The shortest delay in seconds that makes sense on this broker."""
        return self.harness.tick

    @property
    def lease(self) -> float:
        """The lease in seconds that checks use."""
        return self.harness.lease

    def many(self, count: int) -> int:
        """Return *count* messages in the harness's measure."""
        return max(10, round(count * self.harness.load))

    def note(self, **notes: Any) -> None:
        """Put measurements into the report."""
        self.notes.update(notes)

    # -- adapters, addresses, buses -----------------------------------------------------------------------------

    async def open(self, *, provision: Provision = Provision.CREATE, clock: Clock | None = None) -> Adapter:
        """Open another adapter to the same broker."""
        url = BusURL.parse(self.harness.url)
        config = AdapterConfig(
            clock=clock or SystemClock(), service="kit", instance=secrets.token_hex(4), provision=provision
        )
        adapter = adapter_class(url)(url, config)
        self._stack.push_async_callback(adapter.aclose)
        await adapter.open()
        return adapter

    def name(self, what: str = "q") -> str:
        """Return a fresh channel name."""
        self._count += 1
        return f"{self.prefix}.{what}{self._count}"

    async def queue(self, *, keyed: bool = False) -> Source:
        """Declare a fresh queue and return its source."""
        source = Source(Address(Kind.QUEUE, self.name(), keyed))
        await self.adapter.declare(Topology((source.address,), (source,)))
        return source

    async def topic(self, *groups: str, keyed: bool = False) -> list[Source]:
        """Declare a fresh topic and return the sources of its groups."""
        address = Address(Kind.TOPIC, self.name("t"), keyed)
        sources = [Source(address, group) for group in groups]
        await self.adapter.declare(Topology((address,), tuple(sources)))
        return sources

    async def tap(
        self, source: Source, *, on: Adapter | None = None, prefetch: int = 100, lease: float | None = None
    ) -> Tap:
        """Subscribe to *source*."""
        tap = Tap(self, on or self.adapter, source, prefetch=prefetch, lease=60.0 if lease is None else lease)
        await tap.open()
        self._stack.push_async_callback(tap.aclose)
        return tap

    def bus(self, **options: Any) -> Bus:
        """Return a bus on the broker, not opened yet. Buses of one case share channels and idempotency records."""
        return Bus(**{**self._bus_options(), **options})

    def _bus_options(self) -> dict[str, Any]:
        store: str | None = self.harness.store_url
        if store is None and not has_store(BusURL.parse(self.harness.url)):
            store = f"memory://{self.prefix}"
        return {
            "url": self.harness.url,
            "namespace": self.prefix,
            "lease": 60.0,  # nobody loses a message because the machine is busy; checks of leases say how long
            "drain_timeout": 5.0,
            "idempotency_url": store,
        }

    def worker(self, behaviour: str, *, attempts: int = 5, concurrency: int = 1) -> WorkerProcess:
        """Start a process that consumes the queue ``work`` (see `msgbus.testing.worker`)."""
        bus = {**self._bus_options(), "lease": self.lease}
        orders = {"bus": bus, "behaviour": behaviour, "attempts": attempts, "concurrency": concurrency}
        worker = WorkerProcess(
            [sys.executable, "-m", "msgbus.testing.worker"], env={"MSGBUS_TEST_WORKER": json.dumps(orders)}
        )
        self._stack.callback(worker.close)
        return worker

    # -- publishing ---------------------------------------------------------------------------------------------

    def message(
        self,
        target: Address | Source,
        body: bytes = b"",
        *,
        key: str | None = None,
        delay: float = 0.0,
        headers: dict[str, str] | None = None,
        id: str | None = None,
    ) -> Outgoing:
        """Make a message as the bus makes them."""
        message = Message(
            id=id or f"m-{secrets.token_hex(8)}",
            body=body,
            type="kit.message",
            source="kit",
            time=datetime.now(UTC),
            content_type="application/octet-stream",
            key=key,
            headers=headers or {},
        )
        return Outgoing(target, body, message.to_wire(), message.id, key, delay)

    async def publish(self, messages: Iterable[Outgoing], *, on: Adapter | None = None) -> list[Outgoing]:
        """Publish *messages* in batches; each must be confirmed."""
        adapter, sent = on or self.adapter, list(messages)
        size = min(_BATCH, adapter.capabilities.max_batch)
        for start in range(0, len(sent), size):
            batch = sent[start : start + size]
            results = await adapter.publish(batch)
            assert len(results) == len(batch), f"{len(results)} results for {len(batch)} messages"
            failed = [error for error in results if error is not None]
            assert not failed, f"{len(failed)} of {len(batch)} messages were not confirmed: {failed[0]!r}"
        return sent

    async def send(self, target: Address | Source, *bodies: bytes, **options: Any) -> list[Outgoing]:
        """Publish one message per body."""
        return await self.publish(self.message(target, body, **options) for body in bodies)

    # -- waiting ------------------------------------------------------------------------------------------------

    def deadline(self, within: float | None = None) -> float:
        """Return the event loop's time in *within* seconds (of the harness's patience)."""
        return asyncio.get_running_loop().time() + (within or _DEADLINE) * self.harness.patience

    async def eventually(self, condition: Callable[[], Any], *, what: str = "", within: float | None = None) -> Any:
        """Return the value of *condition* (it may be async) as soon as it is true; fail after *within* seconds."""
        deadline = self.deadline(within)
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"this never became true: {what or inspect.getsource(condition).strip()}")
            await asyncio.sleep(_POLL)

    async def raises(self, kind: type[E] | tuple[type[E], ...], call: Awaitable[Any]) -> E:
        """Return the error of *kind* that *call* must raise."""
        try:
            result = await call
        except kind as error:
            return error
        raise AssertionError(f"{kind} was not raised, the call returned {result!r}")

    async def pause(self, ticks: float = 1.0) -> None:
        """Wait some ticks: only to see that something does *not* happen, or that time passes at the broker."""
        await asyncio.sleep(ticks * self.tick)

    # -- accounts -----------------------------------------------------------------------------------------------

    def is_duplicate(self, source: Source, message_id: str) -> bool:
        """Tell whether a message just received had been acked before, and count it."""
        if (source, message_id) not in self._acked:
            return False
        self.duplicates += 1
        return True

    def acked(self, source: Source, ids: Iterable[str]) -> None:
        """Note that messages are done."""
        self._acked.update((source, message_id) for message_id in ids)

    def count_handled(self, handled: Sequence[Any], expected: Iterable[Any]) -> None:
        """Compare what handlers saw with what was sent; what they saw twice is counted as duplicates."""
        wanted, seen = set(expected), set(handled)
        assert seen - wanted == set(), f"handled but never sent: {sorted(seen - wanted, key=str)[:10]}"
        assert wanted - seen == set(), f"sent but never handled: {sorted(wanted - seen, key=str)[:10]}"
        self.duplicates += len(handled) - len(seen)
