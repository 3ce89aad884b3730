"""Long polls, in threads.

A poll that runs cannot be called back: SQS hands out what comes, wanted or not. So each poll looks after what it
brought: it hands it to the event loop, or gives it back at once if the subscription is closed by then.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from msgbus.adapter import Received
from msgbus_aws._claims import Claims
from msgbus_aws._link import Link
from msgbus_aws._outbox import Destination
from msgbus_aws._receipt import read_message
from msgbus_aws._settle import give_back_now

__all__ = ["Poller"]

_ABREAST = 4
"""Polls at once. One brings at most ten messages per round trip; more than a few only wait for the interpreter."""
_BATCH = 10
_SYSTEM = ["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId"]


class Poller:
    """The polls of one subscription.

    Args:
        link: The clients.
        claims: Fetches bodies that are elsewhere.
        queue: What is polled.
        channel: What its messages were published to.
        visibility: Seconds for which a received message is hidden from others.
        keeps_count: Whether what goes back untried keeps its count of attempts.
        on_messages: Called in the event loop with what a poll brought, and when it was sent (monotonic).
        on_error: Called in the event loop when a poll failed.
    """

    def __init__(
        self,
        link: Link,
        claims: Claims,
        queue: Destination,
        channel: str,
        visibility: int,
        *,
        keeps_count: bool,
        on_messages: Callable[[Sequence[Received], float], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.outstanding = 0
        self._link = link
        self._claims = claims
        self._queue = queue
        self._channel = channel
        self._visibility = visibility
        self._keeps_count = keeps_count
        self._on_messages = on_messages
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(_ABREAST, "msgbus-aws-poll")
        self._lock = threading.Lock()
        self._closed = False
        self._running = 0
        self._abreast = 1
        self._attempt = ""

    def ask(self, count: int, wait: float) -> None:
        """Start as many polls as make sense for *count* messages more, each for up to *wait* seconds."""
        seconds = max(1, min(self._link.options.wait, round(wait + 0.49)))
        while count > 0 and self._running < self._abreast:
            batch = min(count, _BATCH)
            count -= batch
            self._running += 1
            self.outstanding += batch
            self._pool.submit(self._poll, batch, seconds)

    def close(self) -> None:
        """Start no more polls; what those under way bring goes back."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False)

    # -- in threads ---------------------------------------------------------------------------------------------

    def _poll(self, count: int, wait: int) -> None:
        sent = self._link.config.clock.monotonic()
        try:
            result: Sequence[Received] | Exception = self._receive(count, wait)
        except (BotoCoreError, ClientError) as exc:
            result = exc
        except Exception as exc:  # noqa: BLE001 - a bug: whoever receives has to hear of it, not a silent thread
            result = exc
        with self._lock:
            if not self._closed:
                try:
                    self._loop.call_soon_threadsafe(self._arrived, count, sent, result)
                except RuntimeError:  # the event loop has ended without closing us
                    self._closed = True
                else:
                    return
        if not isinstance(result, Exception) and result:
            give_back_now(self._link, self._queue, result, self._keeps_count)

    def _receive(self, count: int, wait: int) -> Sequence[Received]:
        arguments: dict[str, Any] = {}
        if self._queue.fifo:
            # If the answer is lost, the same attempt again brings the same messages; else their groups would be
            # blocked until the messages become visible.
            arguments["ReceiveRequestAttemptId"] = attempt = self._attempt or uuid.uuid4().hex
        try:
            answer = self._link.sync(
                "sqs-polls",
                "receive_message",
                QueueUrl=self._queue.target,
                MaxNumberOfMessages=count,
                WaitTimeSeconds=wait,
                VisibilityTimeout=self._visibility,
                MessageSystemAttributeNames=_SYSTEM,
                MessageAttributeNames=["All"],
                **arguments,
            )
        except (BotoCoreError, ClientError):
            self._attempt = attempt if self._queue.fifo else ""
            raise
        self._attempt = ""
        return [read_message(raw, self._channel, self._claims.fetch) for raw in answer.get("Messages", ())]

    # -- in the event loop --------------------------------------------------------------------------------------

    def _arrived(self, count: int, sent: float, result: Sequence[Received] | Exception) -> None:
        self._running -= 1
        self.outstanding -= count
        if isinstance(result, Exception):
            self._abreast = 1
            self._on_error(result)
            return
        # Full batches mean that there is more: ask for more at once. Empty ones are answered for by one poll alone.
        if len(result) == count == _BATCH:
            self._abreast = min(_ABREAST, self._abreast + 1)
        elif not result:
            self._abreast = 1
        self._on_messages(result, sent)
