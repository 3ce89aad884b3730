"""The adapter: publishes, declares, and makes subscriptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar

from nats.aio.client import Client
from nats.aio.msg import Msg

from msgbus.adapter import (
    ATTEMPTS,
    REPLY_TO,
    Adapter,
    AdapterConfig,
    Address,
    BusURL,
    Capabilities,
    Health,
    Kind,
    Outgoing,
    Received,
    Source,
    Stats,
    SubscribeOptions,
    Subscription,
    Topology,
    parse_options,
)
from msgbus.errors import (
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    NoResponders,
    PublishError,
    PublishRejected,
    Unroutable,
    UnsupportedFeature,
)
from msgbus_nats._answers import Tools
from msgbus_nats._confirms import Confirms, Job, Mode
from msgbus_nats._errors import Busy
from msgbus_nats._headers import MESSAGE_ID, encode_headers
from msgbus_nats._inspect import Inspector
from msgbus_nats._keyed import KeyedSubscription
from msgbus_nats._link import Link
from msgbus_nats._live import LiveSubscription
from msgbus_nats._names import Names, in_partition, partition_of, unique
from msgbus_nats._options import NatsOptions
from msgbus_nats._subscription import StreamSubscription
from msgbus_nats._topology import PINNING_SINCE, SCHEDULES_SINCE, Provisioner

__all__ = ["NatsAdapter"]

_HEADERS = 32 * 1024
"""Bytes of a server's maximum payload that are kept for headers."""
_YEAR = 365 * 86_400.0


class NatsAdapter(Adapter):
    """NATS with JetStream, over nats-py. `msgbus_nats` describes URL, options, guarantees and limits."""

    name: ClassVar[str] = "nats"

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        options = parse_options(url, NatsOptions)
        if url.path.strip("/"):
            raise ConfigError(f"a nats:// URL has no path, got {url.path!r}")
        self._options = replace(options, tls=True) if url.scheme == "tls" else options
        self.capabilities = _capabilities(self._options, 1024 * 1024)
        self._link = Link(url, self._options, config, self._set_health)
        self._names = Names(options.prefix, options.partitions)
        self._provisioner = Provisioner(self._link, self._names, options, config.provision)
        self._confirms = Confirms(
            self._link,
            options.timeout,
            config.clock.monotonic,
            lambda: self.capabilities.max_body,
            self._plain_answer,
        )
        self._tools = Tools(
            self._link, self._names, self._provisioner, self._confirms, config.clock, options.double_ack
        )
        self._inspector = Inspector(self._link, self._names, self._provisioner, config.clock)
        self._replies: dict[str, LiveSubscription] = {}
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    @property
    def raw(self) -> Client | None:
        """The nats-py client in use. After a lost connection it is another one."""
        return self._link.client

    def _set_health(self, health: Health) -> None:
        self.health = health
        if health.ok:
            limit = self._link.max_payload
            if self.capabilities.max_body != _max_body(limit):
                self.capabilities = replace(self.capabilities, max_body=_max_body(limit))

    async def open(self) -> None:
        """See `Adapter.open`."""
        try:
            await self._link.open()
            await self._link.join(self._confirms)
        except BaseException:
            await self._link.aclose()
            raise
        if self._link.version < PINNING_SINCE:
            self.capabilities = replace(self.capabilities, order="queue")

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        self._check_open()
        await self._link.ready()
        for source in topology.sources:
            if source.address.keyed and self._link.version < PINNING_SINCE:
                raise UnsupportedFeature("nats", "order by key", "it needs nats-server 2.11 or later")
        await self._provisioner.declare(topology)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the nats adapter is closed")

    # -- publishing ---------------------------------------------------------------------------------------------

    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        """See `Adapter.publish`."""
        self._check_open()
        results: list[PublishError | None] = [None] * len(batch)
        jobs: list[Job] = []
        places: list[int] = []
        for index, outgoing in enumerate(batch):
            try:
                jobs.append(self._job(outgoing))
                places.append(index)
            except PublishError as exc:
                results[index] = exc
            except ValueError as exc:  # a header or a channel that cannot be mapped
                results[index] = PublishRejected(str(exc))
        if jobs:
            errors = await self._confirms.publish(jobs)
            for index, error in zip(places, errors, strict=True) if any(errors) else ():
                results[index] = error
                if type(error) is Unroutable:
                    results[index] = await self._why_unroutable(batch[index], error)
        return results

    def post(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        """See `Adapter.post`."""
        if self._closed:
            return False
        try:
            job = self._job(outgoing)
        except (PublishError, ValueError):
            return False  # `publish` says so

        job.done = done if job.mode is not Mode.STORED else partial(self._stored, outgoing, done)
        return self._confirms.post(job)

    def _stored(
        self, outgoing: Outgoing, done: Callable[[PublishError | None], None], error: PublishError | None
    ) -> None:
        if type(error) is Unroutable:
            self._link.spawn(self._explain(outgoing, error, done))
        else:
            done(error)

    async def _explain(
        self, outgoing: Outgoing, error: PublishError, done: Callable[[PublishError | None], None]
    ) -> None:
        try:
            error = await self._why_unroutable(outgoing, error)
        finally:
            done(error)

    def _job(self, outgoing: Outgoing) -> Job:
        target = outgoing.target
        if isinstance(target, Source):
            place = self._names.place(target.address)
            subject = self._names.direct(target, outgoing.channel)
        elif target.kind is Kind.REPLY:  # anybody's inbox: as good as always a new one
            return Job(target.name, outgoing.body, encode_headers(outgoing.headers), Mode.HEARD)
        else:
            place = self._names.place(target)
            subject = place.subject
        if place.partitions:
            subject = in_partition(subject, partition_of(outgoing.key or outgoing.id, place.partitions))
        if not place.stream:
            if outgoing.delay:
                raise PublishRejected(f"{place.address} is on core NATS, which delays nothing")
            mode = Mode.CAST if place.address.kind is Kind.TOPIC else Mode.HEARD
            headers = encode_headers(outgoing.headers)
            return Job(subject, outgoing.body, headers, mode, self._own_reply(outgoing), outgoing.id)
        instructions: dict[str, str] = {}
        if isinstance(target, Address):
            # Replays and retries are meant to be stored although their id was stored before.
            attempt = outgoing.headers.get(ATTEMPTS)
            instructions[MESSAGE_ID] = f"{outgoing.id}@{target.name}{f':{attempt}' if attempt else ''}"
        if outgoing.delay:
            if not place.later or self._link.version < SCHEDULES_SINCE:
                why = "delayed publishing needs nats-server 2.12" if place.later else "its stream is joined"
                raise PublishRejected(f"{place.address} takes no delayed messages: {why}")
            due = datetime.fromtimestamp(self.config.clock.now() + outgoing.delay, UTC)
            instructions["Nats-Schedule"] = f"@at {due.isoformat(timespec='microseconds').replace('+00:00', 'Z')}"
            instructions["Nats-Schedule-Target"] = subject
            subject = place.later.replace("{}", unique(instructions.get(MESSAGE_ID, outgoing.id)))
        return Job(subject, outgoing.body, encode_headers(outgoing.headers, instructions), Mode.STORED)

    def _own_reply(self, outgoing: Outgoing) -> str:
        reply_to = outgoing.headers.get(REPLY_TO, "")
        return reply_to if reply_to in self._replies else ""

    def _plain_answer(self, reply_to: str, request_id: str, message: Msg) -> None:
        if reply_to in self._replies:
            self._replies[reply_to].answer(request_id, message)

    async def _why_unroutable(self, outgoing: Outgoing, error: PublishError) -> PublishError:
        """Tell a stream that does not exist from one without a leader, which answers neither."""
        target = outgoing.target
        try:
            if isinstance(error, NoResponders) or not await self._provisioner.exists(
                target.address if isinstance(target, Source) else target
            ):
                return error
        except BrokerUnavailable as exc:
            return Busy(str(exc))
        return Busy(f"{error}; the stream exists, so it has no leader now")

    # -- consuming ----------------------------------------------------------------------------------------------

    async def subscribe(self, source: Source, options: SubscribeOptions) -> Subscription:
        """See `Adapter.subscribe`."""
        self._check_open()
        await self._link.ready()
        self._subscriptions = {s for s in self._subscriptions if not getattr(s, "_closed", False)}
        if source.address.kind is Kind.REPLY or not (source.dead or self._names.place(source.address).stream):
            if options.start is not None:
                raise UnsupportedFeature("nats", f"replay of {source}", "core NATS keeps nothing")
            live = LiveSubscription(self._tools, source)
            await self._link.join(live)
            await self._link.sync()  # whoever publishes from now on reaches it
            self._subscriptions.add(live)
            if live.address:
                self._replies[live.address] = live
            return live
        if options.start is not None:
            await self._provisioner.reposition(source, options.start)
        works = self._names.consumers(source)
        if source.dead:  # seldom consumed, so its consumer is made when it is
            await self._provisioner.ensure(source, works[0])
        kind = KeyedSubscription if works[0].parted else StreamSubscription
        subscription = kind(self._tools, source, options, works)
        await subscription.open()
        self._subscriptions.add(subscription)
        return subscription

    async def stats(self, source: Source) -> Stats:
        """See `Adapter.stats`."""
        self._check_open()
        return await self._inspector.stats(source)

    async def browse(self, source: Source, *, limit: int, after: str | None = None) -> Sequence[Received]:
        """See `Adapter.browse`."""
        self._check_open()
        return await self._inspector.browse(source, limit, after)

    async def remove(self, source: Source) -> None:
        """See `Adapter.remove`."""
        self._check_open()
        await self._provisioner.remove(source)

    async def aclose(self) -> None:
        """See `Adapter.aclose`."""
        if self._closed:
            return
        self._closed = True
        try:
            for subscription in self._subscriptions:
                await subscription.aclose()
        finally:
            await self._link.aclose()


def _max_body(max_payload: int) -> int:
    return max(max_payload - _HEADERS, max_payload // 2)


def _capabilities(options: NatsOptions, max_payload: int) -> Capabilities:
    return Capabilities(
        groups=True,
        patterns=True,
        order="key",
        max_delay=_YEAR,
        delivery_count="approximate",
        lease="renewable",
        replay=True,
        browse=True,
        remove=True,
        unroutable=True,
        dedupe_window=options.dedupe_window,
        durable=options.storage == "file",
        requests="native",
        max_body=_max_body(max_payload),
        max_batch=500,
        max_settle=1000,
        publish_window=5,  # what fills the window of unconfirmed messages, and what waits to go on
    )
