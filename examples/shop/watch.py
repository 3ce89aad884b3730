"""Watches the orders on their way until all of them are accounted for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.shop.accounts import Books, Dead, Sent, close_books
from examples.shop.app import bus
from examples.shop.ledger import LedgerReader
from examples.shop.model import ORDERED, order_paid, order_placed, orders, payments
from examples.shop.workers import Workers
from msgbus import Channel

SUBSCRIPTIONS: tuple[tuple[Channel[Any], str | None], ...] = (
    (orders, None),
    (payments, None),
    (order_placed, "email"),
    (order_placed, "inventory"),
    (order_placed, "analytics"),
    (order_paid, "email"),
    (order_paid, "inventory"),
)
POLL = 0.2


class Watch:
    """Keeps the books of one run.

    Args:
        sent: What is sent.
        ledger: What the workers write down.
    """

    def __init__(self, sent: Sequence[Sent], ledger: LedgerReader) -> None:
        self._sent = sent
        self._ledger = ledger
        self._dead: dict[str, list[Dead]] = {}

    async def until_settled(
        self, bars: Progress, sending: asyncio.Task[int], workers: Workers, deadline: float
    ) -> None:
        """Show the progress until all orders are accounted for and nothing is under way, or until *deadline*."""
        settled = bars.add_task("orders settled", total=len({one.order for one in self._sent}))
        while time.monotonic() < deadline:
            workers.check()
            if sending.done():
                sending.result()
            books, waiting = await self.look()
            bars.update(settled, completed=books.done["charged"] + len(books.dead))
            if sending.done() and not waiting and not books.problems:
                return
            await asyncio.sleep(POLL)

    async def look(self) -> tuple[Books, int]:
        """Return the books as they are now, and how many messages the workers still have before them."""
        waiting = 0
        for channel, group in SUBSCRIPTIONS:
            stats = await bus.stats(channel, group=group)
            waiting += (stats.ready or 0) + (stats.in_flight or 0) + (stats.delayed or 0)
            await self._look_at_dead_letters(channel, group, stats.dead)
        dead = [letter for letters in self._dead.values() for letter in letters]
        return close_books(self._sent, self._ledger.poll(), dead, ordered=ORDERED), waiting

    async def _look_at_dead_letters(self, channel: Channel[Any], group: str | None, count: int | None) -> None:
        """Read a subscription's dead letters if there are new ones; *count* is None where the broker cannot count."""
        label = f"{channel.name}@{group}" if group else channel.name
        if count == len(self._dead.get(label, ())):
            return
        box = await bus.dead_letters(channel, group=group)
        letters = await box.peek(limit=len(self._sent) if count is None else count)
        self._dead[label] = [
            Dead(label, _order(letter.message.body), letter.report.reason, letter.report.detail, letter.report.attempts)
            for letter in letters
        ]


def progress_bars() -> Progress:
    """Return what shows the progress."""
    return Progress(TextColumn("{task.description:>15}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def _order(body: bytes) -> str:
    payload = json.loads(body)
    return str(payload.get("order_id") or payload["id"])
