"""Writes down what a bus does: its publishes, what it receives, how handlers fare, and how messages are settled."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from msgbus._message import parse_time
from msgbus.adapter import (
    ID,
    Ack,
    Adapter,
    Kind,
    Outcome,
    Received,
    Source,
    SubscribeOptions,
    Subscription,
)
from msgbus.errors import BrokerUnavailable, EncodeError, NotSent, SettleError
from msgbus.testing.history._events import EventKind, Journal

if TYPE_CHECKING:
    from msgbus import Bus, Channel, Delivery

__all__ = ["Recorder"]

_ALL = 1_000_000


class Recorder:
    """Records one process's part of a history.

        recorder = Recorder(Journal(folder / "worker-1.jsonl", "worker-1"))
        bus = Bus(url, consume_middleware=[recorder.middleware])
        async with bus:
            recorder.watch(bus)
            await bus.start()

    Args:
        journal: Where it writes.
        namespace: The buses' namespace, to be taken off the names that adapters see.
    """

    def __init__(self, journal: Journal, namespace: str = "") -> None:
        self._journal = journal
        self._prefix = f"{namespace}." if namespace else ""

    @contextmanager
    def publishing(
        self,
        channel: str,
        id: str,
        *,
        key: str | None = None,
        delay: float = 0.0,
        expires: float | None = None,
        detail: str = "",
    ) -> Iterator[None]:
        """Record the publish of one message, which is the body of the ``with``; its error goes on.

        Args:
            channel: Where to.
            id: The message's id, which is also given to the publish.
            key: Its ordering key.
            delay: Seconds before it may be handled.
            expires: Seconds after which it may not be handled any more.
            detail: ``garbage`` for what no handler can decode.
        """
        write, run, now = self._journal.write, secrets.token_hex(4), time.time()
        write(
            EventKind.PUBLISH,
            at=now,
            id=id,
            channel=channel,
            key=key,
            run=run,
            detail=detail,
            due=now + delay if delay else None,
            expires=None if expires is None else now + expires,
        )
        try:
            yield
        except (NotSent, BrokerUnavailable, EncodeError) as exc:
            write(EventKind.FAILED, id=id, channel=channel, run=run, detail=f"{type(exc).__name__}: {exc}"[:300])
            raise
        except BaseException as exc:
            write(EventKind.UNKNOWN, id=id, channel=channel, run=run, detail=f"{type(exc).__name__}: {exc}"[:300])
            raise
        write(EventKind.CONFIRMED, id=id, channel=channel, run=run)

    async def middleware(self, delivery: Delivery[Any], call_next: Callable[[Delivery[Any]], Awaitable[Any]]) -> Any:
        """Record a handler's start and end: for the bus's ``consume_middleware``."""
        write, message, run = self._journal.write, delivery.message, secrets.token_hex(4)
        where: dict[str, Any] = {"id": message.id, "channel": delivery.channel, "group": delivery.group, "run": run}
        write(EventKind.STARTED, key=message.key, attempt=delivery.attempt, **where)
        try:
            result = await call_next(delivery)
        except Exception as exc:
            write(EventKind.ENDED, detail=type(exc).__name__, attempt=delivery.attempt, **where)
            raise
        except BaseException:
            write(EventKind.ENDED, detail="cancelled", attempt=delivery.attempt, **where)
            raise
        write(EventKind.ENDED, detail="ok", attempt=delivery.attempt, **where)
        return result

    def watch(self, bus: Bus) -> None:
        """Record what an open *bus* receives and settles; to be called before ``bus.start()``."""
        for connection in bus._open._connections:  # noqa: SLF001 - there is no door for this, and need be none
            self._watch(connection.adapter)

    def complain(self, text: str, **details: Any) -> None:
        """Record something that must not be; the check fails with it."""
        self._journal.write(EventKind.COMPLAINT, detail=text, **details)

    def close(self) -> None:
        """Close the journal, once its bus has ended. May be called again."""
        self._journal.close()

    async def note_dead(self, bus: Bus, channel: Channel[Any], group: str | None = None) -> None:
        """Record what is among the dead letters of a subscription: when all has come to rest, before the check.

        That a settlement was taken is not enough: only what can be found there was not lost.
        """
        box = await bus.dead_letters(channel, group=group)
        for dead in await box.peek(limit=_ALL):
            last = parse_time(dead.report.last)
            self._journal.write(
                EventKind.DEAD,
                at=None if last is None else last.timestamp(),
                id=dead.message.id,
                channel=channel.name,
                group=group or "",
                attempt=dead.report.attempts,
                detail=dead.report.reason,
            )

    def _watch(self, adapter: Adapter) -> None:
        subscribe = adapter.subscribe

        async def watched(source: Source, options: SubscribeOptions) -> Subscription:
            subscription = await subscribe(source, options)
            if source.dead or source.address.kind is Kind.REPLY:
                return subscription
            return _Watched(subscription, self._journal, source, self._prefix)

        vars(adapter)["subscribe"] = watched


class _Watched(Subscription):
    """A subscription that writes down what passes through it."""

    def __init__(self, subscription: Subscription, journal: Journal, source: Source, prefix: str) -> None:
        self.address = subscription.address
        self._subscription = subscription
        self._write = journal.write
        self._where = {"channel": source.address.name.removeprefix(prefix), "group": source.group}

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        got = await self._subscription.receive(limit, wait)
        for received in got:
            details = self._details(received)
            self._write(EventKind.RECEIVED, key=received.key, attempt=received.deliveries, **details)
        return got

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        errors = await self._subscription.settle(outcomes)
        for outcome, error in zip(outcomes, errors, strict=True):
            details = self._details(outcome.received)
            self._write(EventKind.SETTLED, detail=_describe(outcome, error), **details)
        return errors

    async def extend(self, received: Sequence[Received], seconds: float) -> Sequence[SettleError | None]:
        return await self._subscription.extend(received, seconds)

    async def aclose(self) -> None:
        await self._subscription.aclose()

    def _details(self, received: Received) -> dict[str, Any]:
        return {"id": received.headers.get(ID, ""), **self._where}


def _describe(outcome: Outcome, error: SettleError | None) -> str:
    words = [type(outcome).__name__.lower()]
    if not isinstance(outcome, Ack) and not getattr(outcome, "counted", True):
        words.append("uncounted")
    if error is not None:
        words.append(f"refused: {type(error).__name__}: {error}"[:200])
    return " ".join(words)
