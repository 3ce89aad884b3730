"""repid on Kafka."""

from __future__ import annotations

from typing import Any, ClassVar

from repid import KafkaServer

from tests.bench.suite.contender import AT_MOST_ONCE, Place
from tests.bench.suite.contenders.kafka_raw import make_topics, servers
from tests.bench.suite.contenders.repid import RepidBase

__all__ = ["Repid"]


class Repid(RepidBase):
    """Its producer asks for the leader's confirm alone, and takes no option for more."""

    guarantee = AT_MOST_ONCE
    settings = "acks=1 (it takes no other), a commit per message after it, on_error=reject, no log; 256 at once"
    modules: ClassVar[tuple[str, ...]] = ("repid", "repid.connections.kafka")
    distributions: ClassVar[tuple[str, ...]] = ("repid", "aiokafka")

    def _server(self) -> Any:
        return KafkaServer(servers(self.url), group_id="bench")

    async def create(self, *places: Place) -> None:
        await make_topics(self.url, places)
