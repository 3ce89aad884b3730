"""Publishing: concurrent publishes to one queue or topic share requests of ten messages.

A standard destination has one lane with several requests under way. A FIFO one has several lanes, each with one: a
key's messages are always in the same lane, so they keep their order.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from msgbus.errors import MessageTooLarge, NotSent, PublishError
from msgbus_aws._errors import refused_entry, unpublished
from msgbus_aws._link import Link
from msgbus_aws._wire import Parcel

__all__ = ["Destination", "Letter", "Outbox"]

_BATCH = 10
"""Messages in one request; the services take no more."""
_ABREAST = 4
"""Requests under way to a standard destination, and lanes of a FIFO one: as many as there are threads for them."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where messages go.

    Attributes:
        service: ``sqs`` or ``sns``.
        target: The queue's URL or the topic's ARN.
        name: How people call it.
        fifo: Whether it keeps order.
    """

    service: str
    target: str
    name: str
    fifo: bool = False


@dataclass(slots=True, eq=False)
class Letter:
    """A message on its way.

    Attributes:
        destination: Where to.
        parcel: The message.
        group: Its message group, on FIFO destinations.
        dedupe: Its deduplication id, on FIFO destinations.
        delay: Whole seconds to wait, on standard queues.
        moved: Whether it has been a message before: then only the service's own limit counts.
    """

    destination: Destination
    parcel: Parcel
    group: str = ""
    dedupe: str = ""
    delay: int = 0
    moved: bool = False

    def entry(self, id: str) -> dict[str, Any]:
        """Return it as one entry of a batch."""
        sqs = self.destination.service == "sqs"
        entry: dict[str, Any] = {"Id": id, "MessageBody" if sqs else "Message": self.parcel.body.text}
        if self.parcel.attributes:
            entry["MessageAttributes"] = self.parcel.attributes
        if self.destination.fifo:
            entry |= {"MessageGroupId": self.group, "MessageDeduplicationId": self.dedupe}
        elif self.delay:
            entry["DelaySeconds"] = self.delay
        return entry


class Outbox:
    """Sends letters in batches.

    Args:
        link: The clients.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lanes: dict[tuple[str, int], _Lane] = {}

    async def send(self, letters: Sequence[Letter]) -> list[PublishError | None]:
        """Send *letters*; return for each None once the service has it, or its error.

        When the caller is cancelled what is not on its way yet is not sent.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[PublishError | None]] = []
        limit = self._link.options.max_message
        for letter in letters:
            future: asyncio.Future[PublishError | None] = loop.create_future()
            futures.append(future)
            if letter.parcel.size > limit and not letter.moved:
                future.set_result(MessageTooLarge(letter.parcel.size, limit))
            else:
                self._lane(letter).add(letter, future)
        try:
            return [await future for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _lane(self, letter: Letter) -> _Lane:
        destination = letter.destination
        number = zlib.crc32(letter.group.encode()) % _ABREAST if destination.fifo else 0
        lane = self._lanes.get((destination.target, number))
        if lane is None:
            lane = _Lane(self._link, destination, 1 if destination.fifo else _ABREAST)
            self._lanes[destination.target, number] = lane
        return lane

    def forget(self, target: str) -> None:
        """Forget a destination that was removed."""
        for key in [key for key in self._lanes if key[0] == target]:
            if not self._lanes[key].busy:
                del self._lanes[key]

    async def aclose(self) -> None:
        """Wait for what is on its way; what waits is not sent."""
        tasks = [task for lane in self._lanes.values() for task in lane.close()]
        if tasks:
            await asyncio.wait(tasks, timeout=self._link.options.timeout)
        self._lanes.clear()


class _Lane:
    """What waits for one destination."""

    def __init__(self, link: Link, destination: Destination, abreast: int) -> None:
        self._link = link
        self._destination = destination
        self._abreast = abreast
        self._waiting: deque[tuple[Letter, asyncio.Future[PublishError | None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False

    @property
    def busy(self) -> bool:
        """Whether anything waits or is on its way."""
        return bool(self._waiting or self._tasks)

    def add(self, letter: Letter, future: asyncio.Future[PublishError | None]) -> None:
        """Send *letter* soon, together with what else is added until then."""
        self._waiting.append((letter, future))
        if not self._scheduled and len(self._tasks) < self._abreast:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def close(self) -> list[asyncio.Task[None]]:
        """Give up what waits; return what is on its way."""
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_result(NotSent("the adapter was closed"))
        return list(self._tasks)

    def _start(self) -> None:
        self._scheduled = False
        while len(self._tasks) < self._abreast and (batch := self._take()):
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start()  # something may have been added when the task had looked for the last time

    def _take(self) -> list[tuple[Letter, asyncio.Future[PublishError | None]]]:
        """Take up to ten letters, of no more bytes together than one message may have."""
        batch: list[tuple[Letter, asyncio.Future[PublishError | None]]] = []
        room = self._link.options.max_message
        while self._waiting and len(batch) < _BATCH:
            letter, future = self._waiting[0]
            if not future.done():  # nobody waits for it any more
                room -= letter.parcel.size
                if room < 0 and batch:
                    break
                batch.append((letter, future))
            self._waiting.popleft()
        return batch

    async def _run(self, batch: list[tuple[Letter, asyncio.Future[PublishError | None]]]) -> None:
        while batch:
            results = await self._send([letter for letter, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
            batch = self._take()

    async def _send(self, letters: list[Letter]) -> list[PublishError | None]:
        to = self._destination
        doing = f"publishing to {to.name}"
        entries = [letter.entry(str(number)) for number, letter in enumerate(letters)]
        try:
            if to.service == "sqs":
                answer = await self._link.send("sqs", "send_message_batch", QueueUrl=to.target, Entries=entries)
            else:
                answer = await self._link.send(
                    "sns", "publish_batch", TopicArn=to.target, PublishBatchRequestEntries=entries
                )
        except (BotoCoreError, ClientError) as exc:
            limit = self._link.options.max_message
            return [unpublished(exc, to.service, doing, size=e.parcel.size, limit=limit) for e in letters]
        except Exception as exc:  # noqa: BLE001 - a closed pool, or a bug: whoever waits has to hear of it
            return [_unexpected(exc, doing) for _ in letters]
        failed = {entry["Id"]: entry for entry in answer.get("Failed", ())}
        confirmed = {entry["Id"] for entry in answer.get("Successful", ())}
        return [self._result(str(number), failed, confirmed, doing) for number in range(len(letters))]

    def _result(
        self, id: str, failed: dict[str, dict[str, Any]], confirmed: set[str], doing: str
    ) -> PublishError | None:
        if id in confirmed:
            return None
        if id in failed:
            return refused_entry(failed[id], self._destination.service, doing)
        return PublishError(f"{doing}: the service did not say what became of the message")


def _unexpected(exc: Exception, doing: str) -> PublishError:
    error = PublishError(f"{doing}: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error
