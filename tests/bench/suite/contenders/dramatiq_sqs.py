"""dramatiq on SQS."""

from __future__ import annotations

from typing import ClassVar

import dramatiq
from botocore.config import Config
from dramatiq_sqs import SQSBroker

from tests.bench.suite.contenders.boto import endpoint
from tests.bench.suite.contenders.dramatiq import DramatiqBase, retries

__all__ = ["Dramatiq"]


class Dramatiq(DramatiqBase):
    """A request per message sent and deleted, ten per receive."""

    settings = (
        "send_message from 16 threads, receives of ten, 8 threads (64 for handlers that wait), delete_message each, "
        "dead_letter, no middleware but Retries, no log; bodies as texts in its JSON envelope, in base64"
    )
    modules: ClassVar[tuple[str, ...]] = ("dramatiq", "dramatiq_sqs")
    distributions: ClassVar[tuple[str, ...]] = ("dramatiq", "dramatiq-sqs", "boto3")
    timeout_ms = 1000  # whole seconds are what its long polls have

    def _make(self) -> dramatiq.Broker:
        return SQSBroker(
            middleware=retries(),
            dead_letter=True,
            visibility_timeout=30,
            endpoint_url=endpoint(self.url),
            region_name="us-east-1",
            config=Config(max_pool_connections=64),
        )
