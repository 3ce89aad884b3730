"""Delayed messages for topics and keyed channels.

SNS delays nothing, and a FIFO queue would hold up the whole key. So these messages wait in a standard queue beside the
channel, made when the first one comes, and are published from there when they are due: by whoever consumes the
channel, and by whoever published to it with a delay, while it runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from msgbus.adapter import Ack, Address, Nack, Outcome, Received, Source, SubscribeOptions
from msgbus.errors import BrokerError, ClosedError
from msgbus_aws._errors import Gone
from msgbus_aws._names import later_queue
from msgbus_aws._outbox import Letter
from msgbus_aws._receipt import Receipt
from msgbus_aws._subscription import SqsSubscription
from msgbus_aws._tools import Tools
from msgbus_aws._wire import fit, group_id, pack

__all__ = ["Later"]

_log = logging.getLogger("msgbus.aws")
_LOOK = 30.0
"""Seconds after which it is looked again whether the queue exists by now: how much later than due the first delayed
message may come whose publisher has gone meanwhile."""
_PAUSE = 2.0
_OPTIONS = SubscribeOptions(prefetch=10, lease=30.0)
_WAIT = 20.0


class Later:
    """Forwards what is due, for all addresses that this adapter has to do with.

    Args:
        tools: The adapter's.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._tasks: dict[Address, asyncio.Task[None]] = {}

    def look_after(self, address: Address) -> None:
        """Forward the messages that wait for *address*, from now on."""
        task = self._tasks.get(address)
        if task is None or task.done():
            self._tasks[address] = asyncio.get_running_loop().create_task(self._forward(address))

    async def aclose(self) -> None:
        """Stop."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))
        self._tasks.clear()

    async def _forward(self, address: Address) -> None:
        while True:
            try:
                queue = await self._tools.provisioner.find_queue(later_queue(address))
                subscription = SqsSubscription(self._tools, Source(address), _OPTIONS, queue)
                try:
                    while True:
                        if received := await subscription.receive(10, _WAIT):
                            await subscription.settle(await self._publish(address, received))
                finally:
                    await subscription.aclose()
            except Gone:
                await self._tools.config.clock.sleep(_LOOK)
            except ClosedError:
                return
            except BrokerError as exc:
                _log.info("delayed messages of %s are looked for again: %s", address, exc)
                await self._tools.config.clock.sleep(_PAUSE)

    async def _publish(self, address: Address, received: Sequence[Received]) -> list[Outcome]:
        to = await self._tools.provisioner.find(address)
        letters = []
        for message in received:
            receipt: Receipt = message.receipt
            # The same id each time this very message is forwarded, so that a FIFO channel takes it once.
            dedupe = fit(receipt.id)
            group = group_id(message.key, receipt.id)
            letters.append(Letter(to, pack(receipt.body, message.headers), group, dedupe, moved=True))
        results = await self._tools.outbox.send(letters)
        for error in results:
            if error is not None:
                _log.warning("a delayed message of %s waits on: %s", address, error)
        return [
            Ack(message) if error is None else Nack(message, _PAUSE)
            for message, error in zip(received, results, strict=True)
        ]
