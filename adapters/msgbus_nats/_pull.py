"""A continuous pull: requests for messages kept open at one durable consumer while somebody waits for messages.

nats-py's `fetch` asks, waits for the whole answer and asks again. Here the next request is sent while the last one
is still being served, a request that the server has forgotten is noticed, and everything the server says about a
request (over, no leader, consumer gone, partition given to somebody else) is acted upon.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from msgbus.errors import BrokerError
from msgbus_nats._headers import parse_headers
from msgbus_nats._link import Link
from msgbus_nats._names import Work
from msgbus_nats._topology import PIN_GROUP, nanoseconds

__all__ = ["Pull", "Sink"]

_log = logging.getLogger("msgbus.nats")

_SHORTEST = 0.01
"""Seconds a request stays open at least; the server refuses less than a millisecond."""
_GRACE = 1.0
"""Seconds after a request's end within which the server must have said so, or it has forgotten the request."""
_MAX_BATCH = re.compile(r"maxrequestbatch of (\d+)")


class Sink(Protocol):
    """Where pulled messages go."""

    def demand(self, pull: Pull) -> tuple[int, float]:
        """Return for how many more messages to ask, and how many seconds the request is to stay open."""
        ...

    def accept(self, pull: Pull, message: Msg) -> None:
        """Take a message."""
        ...

    def unpinned(self, pull: Pull) -> None:
        """Somebody else has the partition now."""
        ...

    def gone(self, pull: Pull, why: str) -> None:
        """The consumer may not exist any more."""
        ...


class Pull:
    """Pulls from one consumer.

    Args:
        link: The connection.
        work: The consumer.
        sink: Takes the messages.
        monotonic: The clock.
    """

    def __init__(self, link: Link, work: Work, sink: Sink, monotonic: Callable[[], float]) -> None:
        self.work = work
        self.pin = ""
        self._link = link
        self._sink = sink
        self._monotonic = monotonic
        self._subscription: NatsSubscription | None = None
        self._over: Client | None = None
        self._inbox = ""
        self._open: dict[int, list[float]] = {}
        self._most = 10_000
        self._paused = False

    @property
    def outstanding(self) -> int:
        """For how many messages it has asked that have not come yet."""
        return int(sum(left for left, _ in self._open.values()))

    async def start(self) -> None:
        """Begin, or begin anew; later messages of a key must not overtake what an older request still brings."""
        self._open.clear()
        client = self._link.use()
        if self._subscription is None or self._over is not client:
            self._over = client
            self._inbox = f"{self._link.inbox}.p.{self._link.number()}"
            self._subscription = await self._link.subscribe(f"{self._inbox}.*", self._on_message)
        self._paused = False
        self.refill()

    def stop(self) -> None:
        """Forget all requests: the connection is gone."""
        self._subscription = None
        self._open.clear()

    async def aclose(self) -> None:
        """Stop asking, and take in what is on its way."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._link.drain(subscription)
        self._open.clear()

    def refill(self) -> None:
        """Ask for more if more is wanted."""
        if self._subscription is None or self._paused:
            return
        batch, wait = self._sink.demand(self)
        if batch <= 0:
            return
        number, wait = self._link.number(), max(wait, _SHORTEST)
        body: dict[str, Any] = {"batch": min(batch, self._most), "expires": nanoseconds(wait)}
        if self.work.parted:
            body |= {"group": PIN_GROUP} | ({"id": self.pin} if self.pin else {})
        self._open[number] = [body["batch"], self._monotonic() + wait + _GRACE]
        try:
            self._link.send(f"CONSUMER.MSG.NEXT.{self.work.stream}.{self.work.name}", body, f"{self._inbox}.{number}")
        except (BrokerError, errors.Error):
            self._open.pop(number, None)  # the connection is gone, and a new one starts anew

    def tick(self) -> None:
        """Notice a forgotten request, and ask again after a refusal."""
        if self._subscription is None:
            return
        now = self._monotonic()
        if any(deadline < now for _, deadline in self._open.values()):
            self._open.clear()
            self._sink.gone(self, "the server has forgotten a pull request")
        elif self._paused:
            self._paused = False
            self.refill()

    def _on_message(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        if not reply:
            self._on_status(int(subject.rpartition(b".")[2]), parse_headers(headers) or {})
            return
        for number, request in self._open.items():  # the oldest request is served first
            request[0] -= 1
            if not request[0]:
                del self._open[number]
            break
        self._sink.accept(self, self._link.message(subject, reply, headers, body))
        if not self._open:
            self.refill()

    def _on_status(self, number: int, headers: Mapping[str, str]) -> None:
        status, text = headers.get("Status", ""), headers.get("Description", "").lower()
        if self._open.pop(number, None) is None:
            return
        if status in ("404", "408"):
            self.refill()
        elif status == "423":
            self.pin = ""
            self._sink.unpinned(self)
            self.refill()
        elif status == "503" or "deleted" in text or "push based" in text:
            self._open.clear()
            self._sink.gone(self, text or "nobody answers for the consumer")
        else:
            if match := _MAX_BATCH.search(text):
                self._most = int(match[1])
            elif status != "409":
                _log.error("consumer %s on %s refused a pull: %s %s", self.work.name, self.work.stream, status, text)
            self._paused = True  # until the next tick

    def __repr__(self) -> str:
        return f"<Pull {self.work.name} {self.outstanding} outstanding>"
