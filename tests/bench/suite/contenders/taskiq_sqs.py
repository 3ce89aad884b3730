"""taskiq on SQS."""

from __future__ import annotations

from typing import ClassVar

from taskiq import AsyncBroker
from taskiq_aio_sqs import SQSBroker

from tests.bench.suite.contender import Place
from tests.bench.suite.contenders.boto import endpoint, make_queues
from tests.bench.suite.contenders.taskiq import TaskiqBase

__all__ = ["Taskiq"]


class Taskiq(TaskiqBase):
    """A request per message: its batches are sent after it has told that they were, and what fails is but logged."""

    settings = (
        "send_message, 256 at once (enable_batching confirms nothing); receives of ten, delete_message each, 64 tasks "
        "at once, acked when saved, SimpleRetryMiddleware, no validation or log; bodies as texts in its JSON envelope"
    )
    modules: ClassVar[tuple[str, ...]] = ("taskiq", "taskiq_aio_sqs")
    distributions: ClassVar[tuple[str, ...]] = ("taskiq", "taskiq-aio-sqs", "aiobotocore")

    def _make(self, queue: str) -> AsyncBroker:
        return SQSBroker(
            queue,
            endpoint_url=endpoint(self.url),
            region_name="us-east-1",
            wait_time_seconds=1,
            max_number_of_messages=10,
            visibility_timeout=30,
        )

    async def create(self, *places: Place) -> None:
        make_queues(self.url, places)
