"""Answers: a queue of its own per process, deleted when it closes.

A process that dies leaves its queue behind. So each says now and then, in a tag, that it is alive; whoever opens a
queue for answers looks for those that have not been for long, and deletes them.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable

from msgbus.errors import BrokerError, ClosedError
from msgbus_aws._names import REPLIES
from msgbus_aws._outbox import Destination
from msgbus_aws._subscription import SqsSubscription
from msgbus_aws._tools import Tools

__all__ = ["ReplySubscription", "make_reply_queue"]

_log = logging.getLogger("msgbus.aws")
_ALIVE = "msgbus-alive"
_RETENTION = 3600
"""Seconds that answers are kept; nobody waits for so long."""
_BEAT = 600.0
"""Seconds between two signs of life."""
_STALE = 3600.0
"""Seconds without a sign of life after which a queue is taken for abandoned: several beats may fail before."""
_SWEEP = 50
"""Queues that one sweep looks at; where more are left behind, several sweeps share them."""


async def make_reply_queue(tools: Tools) -> Destination:
    """Create a queue for this process's answers."""
    name = REPLIES + uuid.uuid4().hex
    answer = await tools.link.call(
        "sqs",
        "create_queue",
        f"creating queue {name!r}",
        QueueName=name,
        Attributes={"MessageRetentionPeriod": str(_RETENTION)},
        tags={_ALIVE: _stamp(tools), "msgbus-service": _tag(tools.config.service)},
    )
    return Destination("sqs", str(answer["QueueUrl"]), f"queue {name!r}")


def _stamp(tools: Tools) -> str:
    return str(int(tools.config.clock.now()))


def _tag(text: str) -> str:
    """Return *text* in the alphabet of tags."""
    return "".join(c if c.isalnum() or c in "_.:/=+-@ " else "_" for c in text)[:256]


class ReplySubscription(SqsSubscription):
    """The answers to one process's requests."""

    address = ""

    def look_after(self) -> None:
        """Say that it is alive, and sweep what dead processes left behind, until it is closed."""
        self._spawn(self._look_after())

    async def _look_after(self) -> None:
        while True:
            try:
                await self._sweep()
            except BrokerError as exc:
                _log.info("stale reply queues are not looked for: %s", exc)
            await self._tools.config.clock.sleep(_BEAT)
            try:
                await self._tools.link.call(
                    "sqs",
                    "tag_queue",
                    f"tagging {self._queue.name}",
                    QueueUrl=self._queue.target,
                    Tags={_ALIVE: _stamp(self._tools)},
                )
            except BrokerError as exc:
                _log.warning("%s may be taken for abandoned: %s", self._queue.name, exc)

    async def _sweep(self) -> None:
        call = self._tools.link.call
        page = await call("sqs", "list_queues", "looking for stale reply queues", QueueNamePrefix=REPLIES)
        urls: Iterable[str] = page.get("QueueUrls", ())
        for url in [url for url in urls if url != self._queue.target][:_SWEEP]:
            tags = (await call("sqs", "list_queue_tags", f"tags of {url}", QueueUrl=url)).get("Tags", {})
            alive = str(tags.get(_ALIVE, ""))
            if alive.isdecimal() and self._tools.config.clock.now() - int(alive) > _STALE:
                _log.info("deleting %s: its process has gone", url)
                await call("sqs", "delete_queue", f"deleting {url}", QueueUrl=url)

    async def aclose(self) -> None:
        """Stop, and delete the queue."""
        if self._closed:
            return
        for task in self._tasks:
            task.cancel()
        self._held.clear()  # nobody else wants what is in it
        await super().aclose()
        try:
            await self._tools.link.call(
                "sqs", "delete_queue", f"deleting {self._queue.name}", QueueUrl=self._queue.target, patient=False
            )
        except (BrokerError, ClosedError) as exc:
            _log.info("%s is left to be swept: %s", self._queue.name, exc)
