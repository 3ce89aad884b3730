"""The adapter: addresses, sources and options become topics, groups and clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from msgbus.adapter import (
    Adapter,
    AdapterConfig,
    Address,
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
    is_pattern,
)
from msgbus.errors import (
    AccessDenied,
    BrokerError,
    BrokerUnavailable,
    ClosedError,
    MessageTooLarge,
    PublishError,
    TopologyError,
    UnsupportedFeature,
)
from msgbus_kafka._cluster import Cluster
from msgbus_kafka._consumer import Membership
from msgbus_kafka._delays import Delays
from msgbus_kafka._names import (
    MAX_DELAY,
    channel_regex,
    dead_of,
    delay_of,
    group_of,
    replies_of,
    retries_of,
    step_for,
    topic_of,
)
from msgbus_kafka._options import connection_arguments, read_options
from msgbus_kafka._producer import Producer, Record
from msgbus_kafka._reader import Reader
from msgbus_kafka._replies import ReplySubscription, reply_record
from msgbus_kafka._subscription import KafkaSubscription, Route
from msgbus_kafka._topology import pieces, pin, provide, remove, wanted_channels, wanted_replies, wanted_sides
from msgbus_kafka._wire import CHANNEL, DUE, encode_key

__all__ = ["KafkaAdapter"]

_log = logging.getLogger("msgbus.kafka")
_PING_EVERY = 1.0
_PING_TIMEOUT = 3.0


class KafkaAdapter(Adapter):
    """Speaks to an Apache Kafka cluster; see the package for the URL and what it promises."""

    name: ClassVar[str] = "kafka"

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        self._options = options = read_options(url)
        self._connection = connection = connection_arguments(url, options, config)
        self.capabilities = Capabilities(
            patterns=True,
            order="key",
            competing=False,
            max_delay=MAX_DELAY,
            replay=True,
            browse=True,
            remove=True,
            unroutable=True,
            max_body=options.max_body,
            publish_window=4,
        )
        self._cluster = Cluster(connection)
        self._producer = Producer(connection, options, exists=self._exists, largest=self._largest)
        self._reader = Reader(self._cluster, connection, options.max_body)
        self._delays = Delays(self._cluster, config, options, self._forwarding, self._producer)
        self._topics: dict[tuple[Kind, str], str] = {}
        self._subscriptions: dict[Subscription, Source] = {}
        self._watching: asyncio.Task[None] | None = None
        self._state = "not opened"

    @property
    def raw(self) -> Any:
        """The `aiokafka.AIOKafkaProducer` that publishes."""
        return self._producer.raw

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; see `Adapter.open`."""
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                await self._cluster.open()
                await self._producer.open()
        except BaseException as exc:
            await self._disconnect()
            self.health = Health(False, str(exc) or type(exc).__name__)
            if isinstance(exc, TimeoutError):
                raise BrokerUnavailable(f"{self.url} did not answer in {self.config.connect_timeout:g} s") from exc
            if isinstance(exc, AccessDenied | BrokerUnavailable):
                raise type(exc)(f"{self.url}: {exc}") from exc
            raise
        self.health = Health(True)
        self._state = "open"
        self._watching = asyncio.create_task(self._watch())

    async def aclose(self) -> None:
        """Close everything; see `Adapter.aclose`."""
        if self._state == "closed":
            return
        self._state = "closed"
        self.health = Health(False, "closed")
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        closing = [self._delays.aclose(), *(subscription.aclose() for subscription in list(self._subscriptions))]
        results = await asyncio.gather(*closing, return_exceptions=True)
        await self._disconnect()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _disconnect(self) -> None:
        try:
            await self._producer.aclose()
        finally:
            await self._cluster.aclose()

    async def _watch(self) -> None:
        """Keep `health` true to life, and forward what waits for the topics that are consumed here."""
        while True:
            await asyncio.sleep(_PING_EVERY)
            try:
                async with asyncio.timeout(_PING_TIMEOUT):
                    await self._cluster.ping()
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is why the broker cannot be used
                if self.health.ok:
                    _log.warning("%s: no answer from the broker: %r", self.url, exc)
                self.health = Health(False, f"{type(exc).__name__}: {exc}")
                continue
            if not self.health.ok:
                _log.info("%s: the broker answers again", self.url)
            self.health = Health(True)
            with contextlib.suppress(BrokerError):  # the next round tries again
                await self._delays.look(self._consumed())

    def _consumed(self) -> list[Source]:
        return [source for source in self._subscriptions.values() if source.address.kind is Kind.TOPIC]

    def _ensure_open(self) -> None:
        if self._state != "open":
            raise ClosedError(f"the kafka adapter is {self._state}")

    # -- topology -----------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        """Create, verify or skip topics; see `Adapter.declare`.

        A new group begins at the earliest message, so that it misses nothing from its declaration on.
        """
        self._ensure_open()
        for piece in pieces(topology):
            channels = wanted_channels(piece, self._options, self._topics)
            wanted = channels | wanted_sides(piece, self._options)
            await provide(self._cluster, wanted.values(), self.config.provision, self._options)
        if self.config.provision is Provision.CREATE:
            for source in topology.sources:
                if not is_pattern(source.address.name) and not source.dead:
                    await pin(self._cluster, source, self._topic(source.address))

    async def remove(self, source: Source) -> None:
        """Delete the source's group and side topics, and a queue's topic; see `Adapter.remove`."""
        self._ensure_open()
        await remove(self._cluster, source.alive)
        self._topics.pop((source.address.kind, source.address.name), None)

    async def _exists(self, topic: str) -> bool:
        return topic in await self._cluster.topics([topic])

    async def _largest(self, topic: str) -> int:
        try:
            return int((await self._cluster.configs([topic]))[topic]["max.message.bytes"])
        except (BrokerError, KeyError, ValueError):
            return self._options.max_body

    def _topic(self, address: Address) -> str:
        return self._topics.get((address.kind, address.name)) or topic_of(address)

    # -- publishing ---------------------------------------------------------------------------------------------

    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        """Publish messages; see `Adapter.publish`."""
        self._ensure_open()
        results: list[PublishError | None] = [None] * len(batch)
        records: list[Record] = []
        places: list[int] = []
        topics: dict[int, str] = {}  # by the target's identity: hashing an address for each message costs more
        for index, outgoing in enumerate(batch):
            try:
                if len(outgoing.body) > self._options.max_body:
                    raise MessageTooLarge(len(outgoing.body), self._options.max_body)
                target = outgoing.target
                if type(target) is not Address or outgoing.delay > 0 or target.kind is Kind.REPLY:
                    record = await self._special(outgoing)
                else:
                    topic = topics.get(id(target)) or topics.setdefault(id(target), self._topic(target))
                    record = Record(topic, outgoing.body, outgoing.headers, encode_key(outgoing.key))
            except PublishError as exc:
                results[index] = exc
            else:
                records.append(record)
                places.append(index)
        await self._producer.send(records)
        for index, record in zip(places, records, strict=True):
            results[index] = record.error
        return results

    async def _special(self, outgoing: Outgoing) -> Record:
        """Return the record of what does not simply go to a channel's topic."""
        target, key = outgoing.target, encode_key(outgoing.key)
        if isinstance(target, Source):
            return self._to_one_group(target, outgoing, key)
        if target.kind is Kind.REPLY:
            return reply_record(target.name, outgoing.body, outgoing.headers)
        await self._delays.prepare(target, self._topic(target))
        due = f"{self.config.clock.now() + outgoing.delay:.6f}"
        headers = {**outgoing.headers, DUE: due, CHANNEL: target.name}
        return Record(delay_of(target)[step_for(outgoing.delay)], outgoing.body, headers, key)

    def _to_one_group(self, source: Source, outgoing: Outgoing, key: bytes | None) -> Record:
        headers = dict(outgoing.headers)
        if outgoing.delay <= 0 and not source.group:
            return Record(self._topic(source.address), outgoing.body, headers, key)
        if outgoing.delay > 0:
            headers[DUE] = f"{self.config.clock.now() + outgoing.delay:.6f}"
        headers[CHANNEL] = outgoing.channel or source.address.name
        return Record(retries_of(source)[step_for(outgoing.delay)], outgoing.body, headers, key)

    # -- consuming ----------------------------------------------------------------------------------------------

    async def subscribe(self, source: Source, options: SubscribeOptions) -> Subscription:
        """Start consuming; see `Adapter.subscribe`."""
        self._ensure_open()
        if source.address.kind is Kind.REPLY:
            return await self._subscribe_to_replies(source)
        subscription = self._subscription(await self._route(source, options), options)
        self._subscriptions[subscription] = source
        try:
            await subscription.open(self.config.connect_timeout)
            if source.address.kind is Kind.TOPIC and not source.dead:
                await self._delays.look([source])
        except BaseException:
            await subscription.aclose()
            raise
        return subscription

    def _subscription(self, route: Route, options: SubscribeOptions) -> KafkaSubscription:
        return KafkaSubscription(
            route,
            options,
            self._connection,
            self._options,
            cluster=self._cluster,
            producer=self._producer,
            clock=self.config.clock,
            time_of=self._reader.time_of,
            closed=self._forget,
        )

    def _forget(self, subscription: Subscription) -> None:
        self._subscriptions.pop(subscription, None)

    def _forwarding(self, route: Route, options: SubscribeOptions) -> KafkaSubscription:
        return self._subscription(route, options)

    async def _route(self, source: Source, options: SubscribeOptions) -> Route:
        dead, group = dead_of(source), group_of(source)
        if source.dead:
            await self._must_exist(dead)
            membership = Membership(group=group, topics=(dead,), start=options.start)
            return Route(membership=membership, side=frozenset({dead}), dead=dead)
        address, retries = source.address, retries_of(source)
        if is_pattern(address.name) and isinstance(options.start, int):
            raise UnsupportedFeature(self.name, "replay of a pattern from a position", "begin at a time")
        side = frozenset(retries.values())
        topics: tuple[str, ...] = ()
        pattern, channels = None, dict[str, str]()
        if is_pattern(address.name):
            pattern = channel_regex(source)
        else:
            topic = self._topic(address)
            await self._must_exist(topic)
            waiting = await self._cluster.topics(sorted(side))
            topics, channels = (topic, *waiting), {topic: address.name}
        membership = Membership(
            group=group,
            topics=topics,
            pattern=pattern,
            together=address.keyed,
            start=options.start,
            from_start=lambda name: name not in side,
        )
        # On a keyed channel a message waits in memory, with its key's lane behind it.
        return Route(
            membership=membership,
            channels=channels,
            retries={} if address.keyed else retries,
            side=side,
            dead=dead,
            keyed=address.keyed,
        )

    async def _must_exist(self, topic: str) -> None:
        if topic not in await self._cluster.topics([topic]):
            raise TopologyError(f"there is no topic {topic!r} at the broker")

    async def _subscribe_to_replies(self, source: Source) -> Subscription:
        topic = replies_of(self.config.service)
        await provide(self._cluster, [wanted_replies(topic)], self.config.provision, self._options)
        await self._must_exist(topic)
        partitions = (await self._cluster.topics([topic]))[topic].partitions
        subscription = ReplySubscription(
            topic, partitions, source.address.name, self._connection, cluster=self._cluster, closed=self._forget
        )
        self._subscriptions[subscription] = source
        try:
            await subscription.open()
        except BaseException:
            await subscription.aclose()
            raise
        return subscription

    # -- looking ------------------------------------------------------------------------------------------------

    async def stats(self, source: Source) -> Stats:
        """Count; see `Adapter.stats`. What is in flight is known of this process only."""
        self._ensure_open()
        topics, group = await self._topics_of(source), group_of(source)
        if source.group:
            await self._must_exist(dead_of(source))  # all that shows that the group was declared
        mine = [s for s, of in self._subscriptions.items() if of == source and isinstance(s, KafkaSubscription)]
        for subscription in mine:
            await subscription.flush()
        in_flight = sum(subscription.in_flight for subscription in mine)
        backlog = await self._reader.backlog(topics, group)
        delayed = 0 if source.dead else await self._reader.backlog(list(retries_of(source).values()), group)
        ready = max(0, backlog - in_flight)
        return Stats(
            ready=ready,
            in_flight=in_flight,
            delayed=delayed,
            dead=None if source.dead else await self._reader.backlog([dead_of(source)], dead_of(source)),
            oldest_age=await self._oldest_age(source) if ready and len(topics) == 1 else None,
        )

    async def _topics_of(self, source: Source) -> list[str]:
        if source.dead or not is_pattern(source.address.name):
            topic = dead_of(source) if source.dead else self._topic(source.address)
            await self._must_exist(topic)
            return [topic]
        side = set(retries_of(source).values())
        return [topic for topic in await self._delays.matching(channel_regex(source)) if topic not in side]

    async def _oldest_age(self, source: Source) -> float | None:
        oldest = await self.browse(source, limit=1)
        return max(0.0, self.config.clock.now() - (oldest[0].time or 0.0)) if oldest else None

    async def browse(self, source: Source, *, limit: int, after: str | None = None) -> Sequence[Received]:
        """Read what the source's group has not finished; see `Adapter.browse`.

        A topic without a group is read from its first message.
        """
        self._ensure_open()
        if is_pattern(source.address.name) and not source.dead:
            raise UnsupportedFeature(self.name, "browsing a pattern", "browse one topic")
        (topic,) = await self._topics_of(source)
        for subscription, of in list(self._subscriptions.items()):
            if of == source and isinstance(subscription, KafkaSubscription):
                await subscription.flush()
        anonymous = source.address.kind is Kind.TOPIC and not source.group
        group = None if anonymous else group_of(source)
        return await self._reader.browse(topic, group, limit=limit, after=after, channel=source.address.name)
