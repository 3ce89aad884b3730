"""Dead letters: peek at them, show one, replay them to the subscription they came from, drop them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

from msgbus._connections import Connection
from msgbus._failure import Report, read_report
from msgbus._message import ATTEMPTS, DEAD, EXPIRES, ID, Message
from msgbus.adapter import Ack, Nack, Outgoing, Received, Source, SubscribeOptions, Subscription

__all__ = ["DeadLetterBox", "DeadMessage"]

_PAGE = 200
_IDLE = 2.0
"""Seconds without a message after which a broker that cannot be browsed is taken to have no more."""


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A dead letter.

    Attributes:
        message: The message, body and headers untouched.
        report: Why and where it was dead-lettered.
    """

    message: Message
    report: Report


class DeadLetterBox:
    """The dead letters of one subscription (``bus.dead_letters(channel, group=…)``).

    Where the broker can be browsed, listing disturbs nobody; elsewhere it receives the dead letters and gives them
    back, so two people should not list the same box at once.
    """

    def __init__(self, connection: Connection, source: Source) -> None:
        self._connection = connection
        self._source = source

    async def peek(self, *, limit: int = 100, skip: int = 0) -> list[DeadMessage]:
        """Return up to *limit* dead letters, oldest first, after the first *skip*. It consumes none of them."""
        return [_dead_message(received) async for received in self._walk(skip + limit)][skip:]

    async def show(self, id: str) -> DeadMessage | None:
        """Return the dead letter of the message *id*, or None."""
        async for received in self._walk(None):
            if received.headers.get(ID) == id:
                return _dead_message(received)
        return None

    async def replay(
        self,
        ids: Collection[str] | None = None,
        *,
        limit: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Send dead letters back to the subscription they came from, with their attempts reset.

        Other groups do not see them. Each is confirmed in its queue before it is taken out of the box; a crash in
        between leaves a duplicate, never a loss. What fails again while this runs is not replayed a second time.

        Args:
            ids: Only these messages; None for all.
            limit: At most so many.
            on_progress: Called with the number replayed so far.

        Returns:
            How many were replayed.
        """
        return await self._take(ids, limit, on_progress, replay=True)

    async def drop(
        self,
        ids: Collection[str] | None = None,
        *,
        limit: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Delete dead letters for good; the arguments are those of `replay`. Returns how many."""
        return await self._take(ids, limit, on_progress, replay=False)

    async def _walk(self, limit: int | None) -> AsyncIterator[Received]:
        if self._connection.adapter.capabilities.browse:
            async for received in self._browse(limit):
                yield received
            return
        there = (await self._connection.adapter.stats(self._source)).dead
        wanted = min((n for n in (limit, there) if n is not None), default=None)
        subscription = await self._subscribe()
        held: list[Received] = []
        try:
            while wanted is None or len(held) < wanted:
                page = await subscription.receive(_PAGE if wanted is None else min(_PAGE, wanted - len(held)), _IDLE)
                if not page:
                    break
                held += page
                for received in page:
                    yield received
        finally:
            await _give_back(subscription, held)

    async def _browse(self, limit: int | None) -> AsyncIterator[Received]:
        after: str | None = None
        left = limit
        while left is None or left > 0:
            page = await self._connection.adapter.browse(
                self._source.dead_letters, limit=_PAGE if left is None else min(_PAGE, left), after=after
            )
            for received in page:
                yield received
            if not page:
                return
            after = str(page[-1].position)
            left = None if left is None else left - len(page)

    async def _take(
        self,
        ids: Collection[str] | None,
        limit: int | None,
        on_progress: Callable[[int], None] | None,
        *,
        replay: bool,
    ) -> int:
        wanted = None if ids is None else set(ids)
        # Only what is dead now: what dies while this runs (a replayed message that fails again) is left alone.
        left = (await self._connection.adapter.stats(self._source)).dead
        taken = 0
        subscription = await self._subscribe()
        kept: list[Received] = []
        try:
            while left != 0 and taken != limit and wanted != set():
                room = None if limit is None else limit - taken
                size = min(n for n in (_PAGE, left, room) if n is not None)
                page = await subscription.receive(size, _IDLE)
                if not page:
                    break
                left = None if left is None else left - len(page)
                chosen = [r for r in page if wanted is None or r.headers.get(ID) in wanted]
                kept += [r for r in page if r not in chosen]
                taken += await (self._replay if replay else self._drop)(subscription, chosen)
                if wanted is not None:
                    wanted -= {r.headers.get(ID, "") for r in chosen}
                if on_progress is not None:
                    on_progress(taken)
        finally:
            await _give_back(subscription, kept)
        return taken

    async def _drop(self, subscription: Subscription, chosen: list[Received]) -> int:
        await subscription.settle([Ack(received) for received in chosen])
        return len(chosen)

    async def _replay(self, subscription: Subscription, chosen: list[Received]) -> int:
        futures = [self._connection.publisher.submit(self._revived(received)) for received in chosen]
        errors = await asyncio.gather(*futures, return_exceptions=True)
        confirmed = [received for received, error in zip(chosen, errors, strict=True) if error is None]
        await subscription.settle([Ack(received) for received in confirmed])
        if failed := [(r, error) for r, error in zip(chosen, errors, strict=True) if error is not None]:
            await subscription.settle([Nack(received, counted=False) for received, _ in failed])
            raise failed[0][1]
        return len(confirmed)

    def _revived(self, received: Received) -> Outgoing:
        headers = {k: v for k, v in received.headers.items() if k not in (DEAD, ATTEMPTS, EXPIRES)}
        return Outgoing(
            self._source, received.body, headers, headers.get(ID, ""), received.key, channel=received.channel
        )

    async def _subscribe(self) -> Subscription:
        await self._connection.declare(sources=[self._source])
        return await self._connection.adapter.subscribe(
            self._source.dead_letters, SubscribeOptions(prefetch=10_000, lease=60.0)
        )


async def _give_back(subscription: Subscription, messages: list[Received]) -> None:
    try:
        for start in range(0, len(messages), _PAGE):
            page = messages[start : start + _PAGE]
            await subscription.settle([Nack(received, counted=False) for received in page])
    finally:
        await subscription.aclose()


def _dead_message(received: Received) -> DeadMessage:
    return DeadMessage(Message.from_wire(received.body, received.headers, received.key), read_report(received.headers))
