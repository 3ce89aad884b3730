"""How much one subscription does at once."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one subscription does at once.

    Attributes:
        concurrency: Handlers that run at once.
        prefetch: Messages held at most.
        lease: Seconds a message stays ours without a heartbeat.
        timeout: Seconds a handler may take, or None.
        batch: Messages per call of a batch handler, or 0.
        batch_wait: Seconds a batch waits to fill up.
    """

    concurrency: int
    prefetch: int
    lease: float
    timeout: float | None = None
    batch: int = 0
    batch_wait: float = 0.05

    @property
    def refill(self) -> int:
        """How much room there must be before more is received: many at once, but never with a worker idle."""
        return max(1, (self.prefetch - self.concurrency * max(1, self.batch)) // 2)
