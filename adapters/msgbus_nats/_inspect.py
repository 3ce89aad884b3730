"""Looking without touching: counts, and the messages themselves."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgbus.adapter import Clock, Kind, Received, Source, Stats
from msgbus.errors import TopologyError, UnsupportedFeature
from msgbus_nats._errors import STREAM_NOT_FOUND, ApiError
from msgbus_nats._headers import decode_headers, parse_headers
from msgbus_nats._link import Link
from msgbus_nats._names import Names, Work
from msgbus_nats._topology import Provisioner

__all__ = ["Inspector"]

_NO_MESSAGE = 10037


class Inspector:
    """Reads streams and consumers.

    Args:
        link: The connection.
        names: Where things are.
        provisioner: Asks for consumers.
        clock: Tells ages.
    """

    def __init__(self, link: Link, names: Names, provisioner: Provisioner, clock: Clock) -> None:
        self._link = link
        self._names = names
        self._provisioner = provisioner
        self._clock = clock

    async def stats(self, source: Source) -> Stats:
        """Return a snapshot of *source*.

        JetStream counts what waits for a retry among what is being handled; ``delayed`` are delayed publishes.
        """
        dead = (
            None
            if source.dead
            else await self._count(self._names.dead, self._names.consumers(source.dead_letters)[0].filters[0])
        )
        if not source.dead and not self._names.place(source.address).stream:
            return Stats(dead=dead)
        ready = in_flight = 0
        oldest: list[float] = []
        for work in self._names.consumers(source):
            info = await self._info(source, work)
            ready += info["num_pending"]
            in_flight += info["num_ack_pending"]
            if info["num_pending"]:
                seq = info.get("delivered", {}).get("stream_seq", 0) + 1
                found = [await self._next(work.stream, subject, seq) for subject in work.filters]
                oldest += [_timestamp(m["time"]) for m in found if m is not None]
        later = "" if source.dead else self._names.place(source.address).later
        return Stats(
            ready=ready,
            in_flight=in_flight,
            delayed=await self._count(self._names.place(source.address).stream, later.replace("{}", "*"))
            if later
            else 0,
            dead=dead,
            oldest_age=max(0.0, self._clock.now() - min(oldest)) if oldest else None,
        )

    async def _info(self, source: Source, work: Work) -> dict[str, Any]:
        try:
            return await self._provisioner.info(work)
        except TopologyError:
            if source.address.kind is Kind.TOPIC and not source.dead:
                raise
            if not source.dead and not await self._provisioner.exists(source.address):
                raise
        # Nobody has ever consumed it, so all that there is is ready.
        return {"num_pending": await self._count(work.stream, work.filters[0]), "num_ack_pending": 0}

    async def _count(self, stream: str, subject: str) -> int:
        try:
            info = await self._link.call(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
        except ApiError as exc:
            if exc.err_code != STREAM_NOT_FOUND:
                raise
            return 0
        return sum((info["state"].get("subjects") or {}).values())

    async def browse(self, source: Source, limit: int, after: str | None) -> Sequence[Received]:
        """Return up to *limit* messages that are not done yet, in the stream's order."""
        if not source.dead and not self._names.place(source.address).stream:
            raise UnsupportedFeature("nats", f"browse of {source}", "core NATS keeps nothing")
        works = self._names.consumers(source)
        seq = int(after) + 1 if after is not None else await self._first(source)
        filters = [subject for work in works for subject in work.filters]
        heads = {subject: await self._next(works[0].stream, subject, seq) for subject in filters}
        page: list[Received] = []
        while len(page) < limit:
            waiting = {subject: head for subject, head in heads.items() if head is not None}
            if not waiting:
                break
            subject = min(waiting, key=lambda s: int(waiting[s]["seq"]))
            head = waiting[subject]
            page.append(self._received(source, head))
            heads[subject] = await self._next(works[0].stream, subject, int(head["seq"]) + 1)
        return page

    async def _first(self, source: Source) -> int:
        """Return where the undone messages of a topic's group begin; queues contain nothing else."""
        if source.dead or source.address.kind is not Kind.TOPIC:
            return 1
        floors = [(await self._provisioner.info(w))["ack_floor"]["stream_seq"] for w in self._names.consumers(source)]
        return int(min(floors)) + 1

    async def _next(self, stream: str, subject: str, seq: int) -> dict[str, Any] | None:
        try:
            answer = await self._link.call(f"STREAM.MSG.GET.{stream}", {"seq": seq, "next_by_subj": subject})
        except ApiError as exc:
            if exc.err_code not in (_NO_MESSAGE, STREAM_NOT_FOUND):
                raise
            return None
        message: dict[str, Any] = answer["message"]
        return message

    def _received(self, source: Source, message: dict[str, Any]) -> Received:
        own = not source.dead and not ("*" in source.address.name or "#" in source.address.name)
        return Received(
            base64.b64decode(message.get("data", "")),
            decode_headers(parse_headers(base64.b64decode(message.get("hdrs", "")))),
            0,
            source.address.name if own else self._names.channel(message["subject"]),
            None,
            _timestamp(message["time"]),
            int(message["seq"]),
        )


def _timestamp(text: str) -> float:
    """Parse the server's nanosecond RFC 3339."""
    head, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(head + "+00:00").timestamp() + float(f"0.{fraction or 0}")
