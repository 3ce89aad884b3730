"""What one run is asked for, what it has to prove, and what it gives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["BodySize", "Failed", "Handler", "Load", "Lost", "Measured", "Tally", "Watch", "bodies", "number_of"]

BodySize = int
_DIGITS = 8


class Lost(Exception):
    """Messages are missing: there is no figure."""


class Failed(Exception):
    """What a handler raises to be called again with the same message."""


@dataclass(frozen=True)
class Load:
    """How much one run does.

    Attributes:
        count: Messages, or requests.
        size: Bytes of a body.
        queue: The name of a queue that nobody else uses.
        rate: Messages per second where a case paces them; 0 for as fast as it goes.
        part: What varies inside a case: subscriptions or keys.
        patience: Seconds without a message after which the rest counts as lost.
    """

    count: int
    size: BodySize
    queue: str
    rate: float = 0.0
    part: int = 0
    patience: float = 30.0


@dataclass(frozen=True)
class Measured:
    """What one run took.

    Attributes:
        value: The figure, in its case's unit.
        cpu: Microseconds of this process's CPU time per message; 0 where that says nothing.
        duplicates: Messages that were handled more than once.
        more: Further figures by name.
    """

    value: float
    cpu: float = 0.0
    duplicates: int = 0
    more: dict[str, float] = field(default_factory=dict)


class Watch:
    """A stop-watch for time and CPU time."""

    def __init__(self) -> None:
        self._cpu, self._began = time.process_time(), time.perf_counter()

    def rate(self, count: int, duplicates: int = 0) -> Measured:
        """Return *count* messages per second, since the watch was made."""
        took = time.perf_counter() - self._began
        return Measured(count / took, (time.process_time() - self._cpu) / count * 1e6, duplicates)


def bodies(count: int, size: BodySize) -> Iterator[bytes]:
    """Yield bodies of *size* bytes that begin with their number."""
    rest = b"x" * (size - _DIGITS)
    for number in range(count):
        yield b"%08d" % number + rest


def number_of(body: bytes | str) -> int:
    """Return the number that a body begins with."""
    return int(body[:_DIGITS])


class Tally:
    """Counts what arrives; done when all of *count* different messages have.

    The clock runs from the first message to the last one, unless `restart` says when it begins. Messages may come on
    any one thread.

    Args:
        count: Messages.
        patience: Seconds without a message after which the rest counts as lost.
    """

    def __init__(self, count: int, patience: float = 30.0) -> None:
        self.count = count
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self.calls = 0
        self._seen = bytearray(count)
        self._left = count
        self._done = asyncio.Event()
        self._watch: Watch | None = None
        self._figure: Measured | None = None

    def restart(self) -> None:
        """Start the clock now."""
        self._watch = Watch()

    def add(self, body: bytes | str) -> int:
        """Note that a message was handled; return its number."""
        number = number_of(body)
        if self._watch is None:
            self._watch = Watch()
        self.calls += 1
        if not self._seen[number]:
            self._seen[number] = 1
            self._left -= 1
            if not self._left:
                self._figure = self._watch.rate(self.count)
                self._loop.call_soon_threadsafe(self._done.set)
        return number

    @property
    def is_done(self) -> bool:
        """Whether every message has been handled."""
        return not self._left

    async def figure(self) -> Measured:
        """Wait for all messages and return the rate at which they were handled.

        Raises:
            Lost: Nothing came for a long time and some are missing.
        """
        while not self.is_done:
            before = self.calls
            try:
                await asyncio.wait_for(self._done.wait(), self._patience)
            except TimeoutError:
                if self.calls == before:
                    raise Lost(f"{self._left} of {self.count} messages never came") from None
        assert self._figure is not None
        return self._figure

    def check(self, figure: Measured) -> Measured:
        """Return *figure* with the duplicates that have come until now.

        Raises:
            Lost: Some are missing.
        """
        if self._left:
            raise Lost(f"{self._left} of {self.count} messages never came")
        return Measured(figure.value, figure.cpu, self.calls - self.count, figure.more)


class Handler:
    """What every contender's handler does with one message.

    Args:
        tally: Who counts.
        wait: Seconds that a call takes, as one that waits for a database does.
        failing: One in so many messages fails when it is first seen; 0 for none.
        batch: Messages at most that one call takes, by `many`; 0 for handlers that take one.
    """

    def __init__(self, tally: Tally, *, wait: float = 0.0, failing: int = 0, batch: int = 0) -> None:
        self.tally = tally
        self.waits = wait
        self.batch = batch
        self._failing = failing
        self._failed: set[int] = set()

    async def __call__(self, body: bytes | str) -> None:
        """Handle one message."""
        if self.waits:
            await asyncio.sleep(self.waits)
        self.blocking(body)

    async def many(self, bodies: Sequence[bytes | str]) -> None:
        """Handle a batch."""
        for body in bodies:
            self.blocking(body)

    def blocking(self, body: bytes | str) -> None:
        """Handle one message, for contenders without an event loop; without the wait."""
        if self._failing:
            number = number_of(body)
            if number % self._failing == 0 and number not in self._failed:
                self._failed.add(number)
                raise Failed(f"message {number} fails once")
        self.tally.add(body)
