"""taskiq on RabbitMQ."""

from __future__ import annotations

from typing import ClassVar

from taskiq import AsyncBroker
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from tests.bench.suite.contenders.taskiq import PREFETCH, TaskiqBase

__all__ = ["Taskiq"]


class Taskiq(TaskiqBase):
    """Persistent and confirmed by itself."""

    settings = (
        "quorum queue, qos 250, 64 tasks at once, acked when saved, SimpleRetryMiddleware, no validation or log; "
        "bodies as texts in its JSON envelope; 256 at once"
    )
    modules: ClassVar[tuple[str, ...]] = ("taskiq", "taskiq_aio_pika")
    distributions: ClassVar[tuple[str, ...]] = ("taskiq", "taskiq-aio-pika", "aio-pika")

    def _make(self, queue: str) -> AsyncBroker:
        target = Queue(name=queue, type=QueueType.QUORUM)
        return AioPikaBroker(self.url, qos=PREFETCH, task_queues=[target])
