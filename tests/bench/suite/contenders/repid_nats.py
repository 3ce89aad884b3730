"""repid on NATS JetStream."""

from __future__ import annotations

from typing import Any, ClassVar

import nats
from repid import NatsServer

from tests.bench.suite.contender import Place
from tests.bench.suite.contenders.nats_py import make_stream
from tests.bench.suite.contenders.repid import RepidBase

__all__ = ["Repid"]


class Repid(RepidBase):
    """Its own push consumer."""

    settings = "on_error=reject, 1,000 tasks (64 for handlers that wait), no keep-alive, no log; 256 at once"
    modules: ClassVar[tuple[str, ...]] = ("repid", "repid.connections.nats")
    distributions: ClassVar[tuple[str, ...]] = ("repid", "nats-py")

    def _server(self) -> Any:
        return NatsServer(self.url)

    async def create(self, *places: Place) -> None:
        client = await nats.connect(self.url)
        for place in places:
            await make_stream(client, place.name)
        await client.close()
