"""The adapter: opens the file, runs its two threads, and tells subscriptions when there is something for them."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from msgbus.adapter import (
    Adapter,
    AdapterConfig,
    BusURL,
    Capabilities,
    Health,
    Kind,
    Outgoing,
    Provision,
    Received,
    Source,
    Stats,
    SubscribeOptions,
    Subscription,
    Topology,
    parse_options,
)
from msgbus.errors import BrokerUnavailable, ClosedError, PublishError, UnsupportedFeature
from msgbus_sqlite import _queries as queries
from msgbus_sqlite._connection import open_database
from msgbus_sqlite._errors import translate
from msgbus_sqlite._options import Options, database_path
from msgbus_sqlite._publish import MAX_BODY, prepare, publish
from msgbus_sqlite._reader import Reader
from msgbus_sqlite._schema import BUS
from msgbus_sqlite._subscription import SQLiteSubscription, next_moment
from msgbus_sqlite._topology import Place, Routes, add_reply, declare, drop, find, sweep_replies
from msgbus_sqlite._writer import Transaction, Writer

__all__ = ["SQLiteAdapter"]

_TEN_YEARS = 3650 * 86_400.0
"""Seconds. A due time is a number like any other; this bound only catches milliseconds passed for seconds."""


class SQLiteAdapter(Adapter):
    """Queues and topics in a SQLite file, shared by the processes of one machine."""

    name: ClassVar[str] = "sqlite"
    capabilities = Capabilities(
        patterns=True,
        order="key",
        park_keys=True,
        max_delay=_TEN_YEARS,
        delivery_count="exact",
        lease="renewable",
        browse=True,
        remove=True,
        unroutable=True,
        max_body=MAX_BODY,
        publish_window=3,  # one writer, but it never waits for the next batch to be made
    )

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        self._options = parse_options(url, Options)
        self._path = database_path(url)
        self._routes = Routes()
        self._subscriptions: tuple[SQLiteSubscription, ...] = ()
        self._threads: tuple[Writer, Reader] | None = None
        self._closed = False

    @property
    def raw(self) -> Path:
        """The database file's path: open a connection of your own to it (see the package's page)."""
        return self._path

    async def open(self) -> None:
        """Open the file; create it and its tables unless everything is to be verified only."""
        if self._closed:
            raise ClosedError("the sqlite adapter is closed")
        if self._threads is not None:
            return
        writer = Writer(
            self._connect,
            self._translate,
            clock=self.config.clock,
            busy_timeout=self._options.busy_timeout,
            on_wake=self._wake,
            on_health=self._report,
        )
        reader = Reader(self._connect, self._translate, survey=self._survey, on_survey=self._notice)
        self._threads = (writer, reader)
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                await writer.start()
                await reader.start()
            self.health = Health(True)
        except BaseException as exc:
            self._threads = None
            await _stop(writer, reader)
            if isinstance(exc, TimeoutError):
                raise BrokerUnavailable(
                    f"the SQLite database {self._path} could not be opened within {self.config.connect_timeout:g} s"
                ) from exc
            raise

    async def declare(self, topology: Topology) -> None:
        """Create or verify what *topology* names, in one transaction."""
        provision = self.config.provision
        if provision is not Provision.SKIP:
            await self._writer.submit(lambda tx: declare(tx, topology, provision))

    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        """Store a batch in one transaction; None for each message once that is committed."""
        errors: list[PublishError | None] = [None] * len(batch)
        prepared = prepare(batch, errors)
        if not prepared:
            return errors
        return await self._writer.submit(lambda tx: publish(tx, self._routes, prepared, errors))

    async def subscribe(self, source: Source, options: SubscribeOptions) -> Subscription:
        """Start consuming; a REPLY source's queue is made here."""
        if options.start is not None:
            raise UnsupportedFeature(self.name, "replay", "messages are gone once they are acked")
        reply = ""
        if source.address.kind is Kind.REPLY and not source.dead:
            reply = f"{source.address.name}.{self.config.instance}.{secrets.token_hex(8)}"
            place = await self._writer.submit(lambda tx: _make_reply(tx, reply))
        else:
            place = await self._reader.query(lambda db: find(db, source))
        subscription = SQLiteSubscription(
            self._writer,
            place,
            dead=source.dead,
            options=options,
            clock=self.config.clock,
            reply=reply,
            on_close=self._remove,
        )
        self._subscriptions += (subscription,)
        self._reader.watch()
        return subscription

    async def stats(self, source: Source) -> Stats:
        """Return a snapshot of *source*."""
        now = self.config.clock.now()
        return await self._reader.query(lambda db: queries.stats(db, find(db, source), now, dead=source.dead))

    async def browse(self, source: Source, *, limit: int, after: str | None = None) -> Sequence[Received]:
        """Return a page of *source*'s messages, received ones too, oldest first."""
        position = int(after) if after else 0
        return await self._reader.query(
            lambda db: queries.browse(db, find(db, source).id + source.dead, limit=limit, after=position)
        )

    async def remove(self, source: Source) -> None:
        """Remove *source* with its messages and dead letters."""
        await self._writer.submit(lambda tx: drop(tx, source))

    async def aclose(self) -> None:
        """Give back what is unsettled, close the file, end the threads."""
        self._closed = True
        self.health = Health(False, "closed")
        try:
            await asyncio.gather(*(subscription.aclose() for subscription in self._subscriptions))
        finally:
            threads, self._threads = self._threads, None
            if threads is not None:
                await _stop(*threads)

    @property
    def _writer(self) -> Writer:
        return self._workers()[0]

    @property
    def _reader(self) -> Reader:
        return self._workers()[1]

    def _workers(self) -> tuple[Writer, Reader]:
        if self._threads is None:
            raise ClosedError(f"the sqlite adapter is {'closed' if self._closed else 'not open'}")
        return self._threads

    def _connect(self) -> sqlite3.Connection:
        return open_database(self._path, self._options, BUS, create=self.config.provision is not Provision.VERIFY)

    def _translate(self, exc: Exception) -> Exception:
        return translate(exc, self._path)

    def _remove(self, subscription: SQLiteSubscription) -> None:
        self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)

    def _report(self, error: Exception | None) -> None:
        if self.health.ok is (error is not None) and not self._closed:
            self.health = Health(error is None, "" if error is None else str(error))

    def _wake(self, places: set[int]) -> None:
        for subscription in self._subscriptions:
            if subscription.place in places:
                subscription.wake()

    def _survey(self, db: sqlite3.Connection) -> dict[int, float]:
        """Return, for each place somebody waits at, when it has something (in the reader's thread)."""
        return {
            subscription.place: next_moment(db, subscription.place, keyed=True)
            for subscription in self._subscriptions
            if subscription.waiting
        }

    def _notice(self, moments: dict[int, float]) -> None:
        for subscription in self._subscriptions:
            if (moment := moments.get(subscription.place)) is not None:
                subscription.notice(moment)


def _make_reply(tx: Transaction, name: str) -> Place:
    sweep_replies(tx)
    return add_reply(tx, name)


async def _stop(writer: Writer, reader: Reader) -> None:
    reader.stop()  # before anything is awaited: whoever is cancelled here leaves no thread behind
    await writer.aclose()
    await reader.aclose()
