"""Messages that were published to a topic with a delay: brought to it when they are due.

They cannot wait where a group's retries do, since all groups must see them. They wait in topics of their own, and
whoever publishes with a delay or consumes the topic takes part in forwarding them, as one group.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgbus.adapter import Ack, Outcome, SubscribeOptions
from msgbus.errors import BrokerError
from msgbus_kafka._producer import Producer, Record
from msgbus_kafka._subscription import KafkaSubscription
from msgbus_kafka._wire import encode_key

__all__ = ["FORWARDING", "Forwarder"]

_log = logging.getLogger("msgbus.kafka")
FORWARDING = SubscribeOptions(prefetch=1000)
_WAIT = 5.0
_RETRY = 0.5


class Forwarder:
    """Brings due messages to one topic.

    Args:
        topic: Where to.
        subscription: Hands out what is due.
        producer: Writes it.
    """

    def __init__(self, topic: str, subscription: KafkaSubscription, producer: Producer) -> None:
        self._topic = topic
        self._subscription = subscription
        self._producer = producer
        self._task: asyncio.Task[None] | None = None

    async def open(self, timeout: float, crashed: Callable[[asyncio.Task[None]], None]) -> None:
        """Start; raises `BrokerError`."""
        await self._subscription.open(timeout)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(crashed)

    async def aclose(self) -> None:
        """Stop; what is not forwarded yet is left to others."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._subscription.aclose()

    async def _run(self) -> None:
        while True:
            try:
                due = await self._subscription.receive(FORWARDING.prefetch, _WAIT)
            except BrokerError as exc:
                _log.warning("cannot forward to %r, trying again: %s", self._topic, exc)
                await asyncio.sleep(_RETRY)
                continue
            records = [Record(self._topic, message.body, message.headers, encode_key(message.key)) for message in due]
            pending = list(zip(due, records, strict=True))
            while pending:
                await self._producer.send([record for _, record in pending])
                done: list[Outcome] = [Ack(message) for message, record in pending if record.error is None]
                await self._subscription.settle(done)
                pending = [item for item in pending if item[1].error is not None]
                if pending:
                    _log.warning("not forwarded to %r yet: %s", self._topic, pending[0][1].error)
                    await asyncio.sleep(_RETRY)
