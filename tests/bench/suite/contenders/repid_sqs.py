"""repid on SQS."""

from __future__ import annotations

from typing import Any, ClassVar

from repid import SqsServer

from tests.bench.suite.contender import Place
from tests.bench.suite.contenders.boto import endpoint, make_queues
from tests.bench.suite.contenders.repid import RepidBase

__all__ = ["Repid"]


class Repid(RepidBase):
    """A request per message sent and deleted, ten per receive."""

    settings = (
        "send_message, 256 at once; receives of ten, delete_message each, on_error=reject, 1,000 tasks (64 for "
        "handlers that wait), no keep-alive, no log; bodies in base64"
    )
    modules: ClassVar[tuple[str, ...]] = ("repid", "repid.connections.sqs")
    distributions: ClassVar[tuple[str, ...]] = ("repid", "aiobotocore")

    def _server(self) -> Any:
        return SqsServer(endpoint(self.url), "us-east-1", receive_wait_time_seconds=1)

    async def create(self, *places: Place) -> None:
        make_queues(self.url, places)
