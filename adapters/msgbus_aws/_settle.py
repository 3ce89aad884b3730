"""Deleting messages and changing their visibility, in batches of ten, with each one's own result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from msgbus.adapter import ATTEMPTS, DeadLetter, Nack, Received
from msgbus.errors import ClosedError, LeaseLost, SettleError
from msgbus_aws._errors import Gone, translate, unsettled_entry
from msgbus_aws._link import Link
from msgbus_aws._outbox import Destination, Letter
from msgbus_aws._receipt import Receipt
from msgbus_aws._wire import pack

__all__ = ["Settlement", "delete", "give_back", "give_back_now", "hide", "untried"]

_log = logging.getLogger("msgbus.aws")
_BATCH = 10


class Settlement:
    """The outcomes of one `Subscription.settle`, sorted by what has to be done.

    Attributes:
        results: Each outcome's.
        done: The outcomes that the service has taken.
        deletes: Messages to delete.
        hides: Messages to give back, and after how many seconds.
        graves: Messages to dead-letter.
        postponed: Messages to send again, to be handled later than their receipt lasts.
    """

    def __init__(self, count: int) -> None:
        self.results: list[SettleError | None] = [None] * count
        self.done: set[int] = set()
        self.deletes: list[tuple[int, Receipt]] = []
        self.hides: list[tuple[int, Receipt, int]] = []
        self.graves: list[tuple[int, DeadLetter]] = []
        self.postponed: list[tuple[int, Nack]] = []

    def take(self, chosen: Sequence[tuple[int, Receipt]], results: Sequence[SettleError | None]) -> None:
        """Note the results of messages that were deleted or hidden."""
        for (index, _), error in zip(chosen, results, strict=True):
            self.results[index] = error
            if error is None:
                self.done.add(index)

    def moved(
        self, chosen: Sequence[tuple[int, Received]], results: Sequence[SettleError | None]
    ) -> list[tuple[int, Receipt]]:
        """Note which messages could not be moved; return the others, which are to be deleted."""
        for (index, _), error in zip(chosen, results, strict=True):
            self.results[index] = error
        return [(i, received.receipt) for (i, received), error in zip(chosen, results, strict=True) if error is None]


async def delete(link: Link, queue: Destination, receipts: Sequence[Receipt]) -> list[SettleError | None]:
    """Delete messages for good."""
    entries = [{"ReceiptHandle": receipt.handle} for receipt in receipts]
    return await _batched(link, queue, "delete_message_batch", entries, f"deleting from {queue.name}")


async def hide(link: Link, queue: Destination, chosen: Sequence[tuple[Receipt, int]]) -> list[SettleError | None]:
    """Hide messages from everybody for so many seconds from now; with 0 they come again at once."""
    entries = [{"ReceiptHandle": receipt.handle, "VisibilityTimeout": seconds} for receipt, seconds in chosen]
    return await _batched(
        link, queue, "change_message_visibility_batch", entries, f"changing the visibility of messages in {queue.name}"
    )


async def give_back(link: Link, queue: Destination, messages: Sequence[Received], *, keeps_count: bool) -> None:
    """Let others have messages at once, see `give_back_now`."""
    batches = [messages[start : start + _BATCH] for start in range(0, len(messages), _BATCH)]
    try:
        for batch in batches:  # in order, for the sake of message groups
            await link.in_thread(give_back_now, link, queue, batch, keeps_count)
    except ClosedError:
        _log.info("%s: %d messages come again when their lease ends", queue.name, len(messages))


def give_back_now(link: Link, queue: Destination, messages: Sequence[Received], keeps_count: bool) -> None:
    """Let others have up to ten messages at once; called in threads.

    SQS counts receives and takes none back. A message that was received for the first time is just made visible. One
    that had been tried before is sent again with its true count, so that no attempt is lost by a process that ends.
    What cannot be given back comes again when its lease ends.
    """
    again = [m for m in messages if keeps_count and m.deliveries > 1]
    try:
        done = _send_again(link, queue, again) if again else []
        rest = [m for m in messages if m not in done]
        if rest:
            entries = [
                {"Id": str(number), "ReceiptHandle": message.receipt.handle, "VisibilityTimeout": 0}
                for number, message in enumerate(rest)
            ]
            link.sync("sqs", "change_message_visibility_batch", QueueUrl=queue.target, Entries=entries)
    except (BotoCoreError, ClientError) as exc:
        _log.info("%s: %d messages come again when their lease ends: %s", queue.name, len(messages), exc)


def _send_again(link: Link, queue: Destination, messages: Sequence[Received]) -> list[Received]:
    """Replace messages by copies that were not received yet; return those for which it worked."""
    letters = [Letter(queue, pack(m.receipt.body, untried(m))) for m in messages]
    entries = [letter.entry(str(number)) for number, letter in enumerate(letters)]
    answer = link.sync("sqs", "send_message_batch", QueueUrl=queue.target, Entries=entries)
    done = [messages[int(entry["Id"])] for entry in answer.get("Successful", ())]
    if done:
        entries = [{"Id": str(n), "ReceiptHandle": message.receipt.handle} for n, message in enumerate(done)]
        link.sync("sqs", "delete_message_batch", QueueUrl=queue.target, Entries=entries)
    return done


def untried(received: Received) -> dict[str, str]:
    """Return the headers of a copy for which this delivery does not count."""
    before = received.headers.get(ATTEMPTS, "")
    made = received.deliveries - 1 + (int(before) if before.isdecimal() and len(before) < 10 else 0)
    return {**received.headers, ATTEMPTS: str(made)} if made else dict(received.headers)


async def _batched(
    link: Link, queue: Destination, method: str, entries: Sequence[dict[str, Any]], doing: str
) -> list[SettleError | None]:
    batches = [entries[start : start + _BATCH] for start in range(0, len(entries), _BATCH)]
    if queue.fifo:
        # One after the other: what is given back of a message group has to become visible in its order.
        answers = [await _once(link, queue, method, batch, doing) for batch in batches]
    else:
        answers = await asyncio.gather(*(_once(link, queue, method, batch, doing) for batch in batches))
    return [result for answer in answers for result in answer]


async def _once(
    link: Link, queue: Destination, method: str, entries: Sequence[dict[str, Any]], doing: str
) -> list[SettleError | None]:
    numbered = [{"Id": str(number), **entry} for number, entry in enumerate(entries)]
    try:
        answer = await link.settle(method, QueueUrl=queue.target, Entries=numbered)
    except (BotoCoreError, ClientError) as exc:
        reason = translate(exc, "sqs", doing)
        # Nobody gets a message again whose queue is gone.
        error = (LeaseLost if isinstance(reason, Gone) else SettleError)(str(reason))
        error.__cause__ = exc
        return [error] * len(entries)
    failed = {entry["Id"]: entry for entry in answer.get("Failed", ())}
    confirmed = {entry["Id"] for entry in answer.get("Successful", ())}
    return [
        unsettled_entry(failed[entry["Id"]], doing)
        if entry["Id"] in failed
        else None
        if entry["Id"] in confirmed
        else SettleError(f"{doing}: the service did not say what became of the message")
        for entry in numbered
    ]
