"""What one asks of an open bus besides publishing: its state, its dead letters, a pause."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from msgbus._channel import Channel
from msgbus._dead_letters import DeadLetterBox
from msgbus._session import HealthReport, Session
from msgbus.adapter import Stats

__all__ = ["Operations"]


class Operations(ABC):
    """The part of `Bus` that looks after a running one."""

    async def dead_letters(self, channel: Channel[Any] | str, *, group: str | None = None) -> DeadLetterBox:
        """Return the dead letters of one subscription.

        Args:
            channel: A Queue, Topic or RequestReply; a queue's (or with *group* a topic's) name will do.
            group: On topics: whose.
        """
        source = await self._open.source(channel, group)
        return DeadLetterBox(source[0], source[1])

    async def pause(self, channel: Channel[Any], *, group: str | None = None) -> None:
        """Stop receiving from one subscription in this process until `resume`: while what its handlers need is down.

        What was received already, at most ``prefetch`` messages, is still handled. What the client library has fetched
        ahead on top of that stays with this process until it resumes or drains. Other processes go on.

        Args:
            channel: Whose.
            group: On topics: which subscription.

        Raises:
            ChannelError: No handler of that subscription is running here.
        """
        await self._open.receiver(channel, group).pause()

    async def resume(self, channel: Channel[Any], *, group: str | None = None) -> None:
        """Go on receiving after `pause`; harmless if it was not paused."""
        self._open.receiver(channel, group).resume()

    async def stats(self, channel: Channel[Any] | str, *, group: str | None = None) -> Stats:
        """Return a snapshot of one subscription: messages ready, in flight, delayed and dead."""
        connection, source = await self._open.source(channel, group)
        return await connection.adapter.stats(source)

    def health(self) -> HealthReport:
        """Return whether the brokers are reachable and the handlers are receiving."""
        return self._open.health()

    async def raw(self, channel: Channel[Any] | None = None) -> Any:
        """Return the client library's own connection for *channel*, for what only that broker can do."""
        return await self._open.raw(channel)

    @property
    @abstractmethod
    def _open(self) -> Session: ...
