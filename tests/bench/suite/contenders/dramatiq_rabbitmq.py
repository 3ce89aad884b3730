"""dramatiq on RabbitMQ."""

from __future__ import annotations

from typing import Any, ClassVar

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.bench.suite.contenders.dramatiq import DramatiqBase, retries

__all__ = ["Dramatiq"]


class _Quorum(RabbitmqBroker):  # type: ignore[misc]
    """The same kind of queue as everybody's."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), "x-queue-type": "quorum"}


class Dramatiq(DramatiqBase):
    """Persistent by itself, confirmed by option."""

    settings = (
        "confirm_delivery, quorum queue, prefetch 250, 8 threads (64 for handlers that wait), no middleware but "
        "Retries, no log; bodies as texts in its JSON envelope; sent from 16 threads"
    )
    modules: ClassVar[tuple[str, ...]] = ("dramatiq", "dramatiq.brokers.rabbitmq")
    distributions: ClassVar[tuple[str, ...]] = ("dramatiq", "pika")

    def _make(self) -> dramatiq.Broker:
        return _Quorum(url=self.url, confirm_delivery=True, middleware=retries())
