"""taskiq on NATS JetStream."""

from __future__ import annotations

from typing import ClassVar

from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from taskiq import AsyncBroker
from taskiq_nats import PullBasedJetStreamBroker

from tests.bench.suite.contenders.nats_py import FETCH
from tests.bench.suite.contenders.taskiq import TaskiqBase

__all__ = ["Taskiq"]


class Taskiq(TaskiqBase):
    """A work-queue stream and a pull consumer."""

    settings = (
        "work-queue stream, pull of 256, 64 tasks at once, acked when saved, SimpleRetryMiddleware, no validation or "
        "log; bodies as texts in its JSON envelope; 256 at once"
    )
    modules: ClassVar[tuple[str, ...]] = ("taskiq", "taskiq_nats")
    distributions: ClassVar[tuple[str, ...]] = ("taskiq", "taskiq-nats", "nats-py")

    def _make(self, queue: str) -> AsyncBroker:
        return PullBasedJetStreamBroker(
            self.url,
            subject=queue,
            stream_name=queue,
            durable="bench",
            stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE),
            consumer_config=ConsumerConfig(durable_name="bench", max_ack_pending=-1),
            pull_consume_batch=FETCH,
            pull_consume_timeout=1,
        )
