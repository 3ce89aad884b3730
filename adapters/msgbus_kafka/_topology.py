"""Topics that must exist: created, or compared with what is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiokafka.errors as kafka
from aiokafka import TopicPartition

from msgbus.adapter import Address, Kind, Provision, Source, Topology, is_pattern
from msgbus.errors import AccessDenied, BrokerUnavailable, ChannelError, TopologyError
from msgbus_kafka._cluster import LATEST, Cluster, NewTopic, TopicInfo
from msgbus_kafka._names import dead_of, delay_of, group_of, retries_of, topic_of
from msgbus_kafka._options import Options

__all__ = [
    "Wanted",
    "pieces",
    "pin",
    "provide",
    "remove",
    "wanted_channels",
    "wanted_for_delay",
    "wanted_replies",
    "wanted_sides",
]

_FOREVER = "-1"
_TWO_WEEKS = str(14 * 86_400_000)
_HOUR = str(3_600_000)
_TEN_MINUTES = str(600_000)
_PROPAGATION = 15.0
_PAUSE = 0.25
REPLY_PARTITIONS = 4
_AT_ONCE = 20
"""Sources whose topics are created together: each has about five."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A topic that must exist.

    Attributes:
        topic: Its name.
        partitions: How many it must have; None for any number.
        replication: How many replicas; None for any number.
        config: Settings it must have.
        initial: Settings it is created with; they may be tuned by hand later.
        initial_partitions: The same for its partitions; None for the broker's default.
        like: The topic whose number of partitions it must have.
        rival: The topic that exists if the channel was declared with a key when this one says without, or the
            other way round.
    """

    topic: str
    partitions: int | None = None
    replication: int | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    initial_partitions: int | None = None
    like: str | None = None
    rival: str | None = None


def wanted_channels(topology: Topology, options: Options, known: dict[tuple[Kind, str], str]) -> dict[str, Wanted]:
    """Return the topics of the channels that *topology* names, and note them in *known*.

    Args:
        topology: What is declared.
        options: The URL's.
        known: The topics of all channels that were declared so far.

    Raises:
        ChannelError: Two channels would share a topic.
    """
    owners = {topic: channel for channel, topic in known.items()}
    wanted: dict[str, Wanted] = {}
    for address in (*topology.addresses, *(source.address for source in topology.sources)):
        if address.kind is Kind.REPLY or is_pattern(address.name):
            continue
        channel = _channel(address, options)
        owner = owners.setdefault(channel.topic, (address.kind, address.name))
        if owner != (address.kind, address.name):
            raise ChannelError(
                f"{owner[0]} {owner[1]!r} and {address} would share the Kafka topic {channel.topic!r}; rename one"
            )
        wanted[channel.topic] = channel
    known |= {owners[topic]: topic for topic in wanted}
    return wanted


def wanted_sides(topology: Topology, options: Options) -> dict[str, Wanted]:
    """Return the topics for the dead letters and the waiting messages of the sources of *topology*."""
    sides = [side for source in topology.sources for side in _sides(source.alive, options)]
    return {side.topic: side for side in sides}


def wanted_for_delay(address: Address, options: Options) -> list[Wanted]:
    """Return the topics that a publish to *address* with a delay needs."""
    return _waiting(delay_of(address).values(), address, options)


def wanted_replies(topic: str) -> Wanted:
    """Return the topic for answers to requests."""
    return Wanted(topic, initial={"retention.ms": _TEN_MINUTES}, initial_partitions=REPLY_PARTITIONS)


def _channel(address: Address, options: Options) -> Wanted:
    native: Mapping[str, Any] = address.native
    config = {str(k): _text(v) for k, v in dict(native.get("config", {})).items()}
    if "retention" in native:
        seconds = float(native["retention"])
        config["retention.ms"] = _FOREVER if seconds < 0 else str(int(seconds * 1000))
    if "compact" in native:
        config["cleanup.policy"] = "compact" if native["compact"] else "delete"
    return Wanted(
        topic_of(address),
        partitions=_count(native, "partitions", address),
        replication=_count(native, "replication", address),
        config=config,
        initial={"retention.ms": _HOUR} if address.kind is Kind.REQUEST else {},
        initial_partitions=options.partitions,
    )


def _sides(source: Source, options: Options) -> list[Wanted]:
    dead = Wanted(dead_of(source), initial={"retention.ms": _FOREVER}, initial_partitions=1)
    rivals = retries_of(replace(source, address=replace(source.address, keyed=not source.address.keyed)))
    waiting = _waiting(retries_of(source).values(), source.address, options)
    return [dead, *(replace(want, rival=rival) for want, rival in zip(waiting, rivals.values(), strict=True))]


def _waiting(topics: Iterable[str], address: Address, options: Options) -> list[Wanted]:
    # On a keyed channel a waiting message must come to the consumer that has its key's partition, so the topics are
    # cut the same way and assigned alike. A pattern's are cut as a channel is that says nothing of its own.
    like = topic_of(address) if address.keyed and not is_pattern(address.name) else None
    partitions = options.partitions if address.keyed else options.retry_partitions
    return [
        Wanted(topic, initial={"retention.ms": _TWO_WEEKS}, initial_partitions=partitions, like=like)
        for topic in topics
    ]


def _count(native: Mapping[str, Any], name: str, address: Address) -> int | None:
    value = native.get(name)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ChannelError(f"{address}: native option {name!r} takes a whole number from 1, got {value!r}")
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def pieces(topology: Topology) -> Iterator[Topology]:
    """Yield *topology* in pieces: much at once is quick, and each must be done within the time of one request."""
    addresses, sources = topology.addresses, topology.sources
    for first in range(0, max(len(addresses), len(sources)), _AT_ONCE):
        yield Topology(addresses[first : first + _AT_ONCE], sources[first : first + _AT_ONCE])


async def provide(cluster: Cluster, wanted: Iterable[Wanted], provision: Provision, options: Options) -> None:
    """Make sure that topics exist as they are wanted.

    Raises:
        TopologyError: One is missing and may not be created, or differs.
    """
    topics = {want.topic: want for want in wanted}
    if provision is Provision.SKIP or not topics:
        return
    rivals = {want.rival: want for want in topics.values() if want.rival}
    existing = await cluster.topics([*topics, *rivals])
    for rival, want in rivals.items():
        if rival in existing and want.topic not in existing:
            how = "without" if ".keyed." in want.topic else "with"
            raise TopologyError(f"{want.topic!r} cannot be added: the channel was declared {how} a key before")
    missing = [want for name, want in topics.items() if name not in existing]
    if missing and provision is Provision.VERIFY:
        names = ", ".join(repr(want.topic) for want in missing)
        raise TopologyError(f"missing at the broker, and MSGBUS_TOPOLOGY=verify creates nothing: topics {names}")
    if missing:
        # Side topics are cut like their channel, which must therefore exist first.
        await _create(cluster, [want for want in missing if want.like is None], existing, options)
        existing = await _wait_for(cluster, topics, [want.topic for want in missing if want.like is None])
        await _create(cluster, [want for want in missing if want.like is not None], existing, options)
        existing = await _wait_for(cluster, topics, list(topics))
        # Only when its leader answers for it a partition takes messages.
        new = [TopicPartition(want.topic, n) for want in missing for n in range(existing[want.topic].partitions)]
        await cluster.offsets(new, LATEST)
    await _compare(cluster, topics.values(), existing)


async def pin(cluster: Cluster, source: Source, topic: str) -> None:
    """Let a new group begin with the next message, where the channel's native option ``start`` says so.

    It is written down at once, so that the group misses nothing from here on although nobody consumes yet.
    """
    start = source.address.native.get("start", "earliest")
    if start not in ("earliest", "latest"):
        raise ChannelError(f"{source.address}: native option 'start' is 'earliest' or 'latest', got {start!r}")
    if start == "earliest" or not source.group:
        return
    count = (await cluster.topics([topic]))[topic].partitions
    partitions = [TopicPartition(topic, number) for number in range(count)]
    committed = await cluster.committed(group_of(source), partitions)
    if new := [tp for tp in partitions if tp not in committed]:
        await cluster.commit(group_of(source), await cluster.offsets(new, LATEST))


async def remove(cluster: Cluster, source: Source) -> None:
    """Delete what belongs to *source*: its group, its side topics, and a queue's messages."""
    topics = [dead_of(source), *retries_of(source).values()]
    if not source.group:
        topics.append(topic_of(source.address))
    await cluster.delete(topics, [group_of(source), group_of(source.dead_letters)])
    deadline = time.monotonic() + _PROPAGATION
    while time.monotonic() < deadline:
        if not await cluster.topics(topics):
            return
        await asyncio.sleep(0.05)


async def _create(
    cluster: Cluster, missing: Iterable[Wanted], existing: Mapping[str, TopicInfo], options: Options
) -> None:
    new = [
        NewTopic(
            want.topic,
            _partitions_like(want, existing) or want.partitions or want.initial_partitions or -1,
            want.replication or options.replication or -1,
            {**want.initial, **want.config},
        )
        for want in missing
    ]
    for topic, (error, message) in (await _try_to_create(cluster, new)).items():
        if error is kafka.TopicAlreadyExistsError:
            continue  # somebody else was faster; it is compared below
        if error is kafka.InvalidTopicError:
            raise ChannelError(f"Kafka does not take the topic name {topic!r}: {message}")
        if error in (kafka.TopicAuthorizationFailedError, kafka.ClusterAuthorizationFailedError):
            raise AccessDenied(f"not allowed to create the topic {topic!r}: {message}")
        raise TopologyError(f"the topic {topic!r} cannot be created: {message}")


async def _try_to_create(cluster: Cluster, topics: list[NewTopic]) -> dict[str, tuple[type[kafka.KafkaError], str]]:
    """Return what could not be created and why; brokers that are just starting, and so too few, are waited for."""
    deadline = time.monotonic() + _PROPAGATION
    failed: dict[str, tuple[type[kafka.KafkaError], str]] = {}
    while topics:
        found = await cluster.create(topics)
        again = {name for name, (error, _) in found.items() if error is kafka.InvalidReplicationFactorError}
        failed |= found
        topics = [topic for topic in topics if topic.name in again and topic.replication <= 1]
        if not topics or time.monotonic() > deadline:
            break
        for topic in topics:
            del failed[topic.name]
        await asyncio.sleep(_PAUSE)
    return failed


def _partitions_like(want: Wanted, existing: Mapping[str, TopicInfo]) -> int | None:
    model = existing.get(want.like) if want.like else None
    return model.partitions if model else None


async def _wait_for(cluster: Cluster, topics: Mapping[str, Wanted], names: list[str]) -> dict[str, TopicInfo]:
    """Return what exists once every broker that is asked knows *names*: creation spreads through the cluster."""
    deadline = time.monotonic() + _PROPAGATION
    while True:
        existing = await cluster.topics(list(topics))
        if all(name in existing for name in names):
            return existing
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"topics were created and did not appear in {_PROPAGATION:g} s")
        await asyncio.sleep(0.05)


async def _compare(cluster: Cluster, wanted: Iterable[Wanted], existing: Mapping[str, TopicInfo]) -> None:
    differences = []
    strict = [want for want in wanted if want.config]
    configs = await cluster.configs([want.topic for want in strict])
    for want in wanted:
        info = existing[want.topic]
        expected = _partitions_like(want, existing) or want.partitions
        if expected is not None and info.partitions != expected:
            differences.append(f"topic {want.topic!r} has {info.partitions} partitions, declared with {expected}")
        if want.replication is not None and info.replication != want.replication:
            differences.append(
                f"topic {want.topic!r} has {info.replication} replicas, declared with {want.replication}"
            )
    for want in strict:
        for name, value in want.config.items():
            found = configs[want.topic].get(name)
            if found != value:
                differences.append(f"topic {want.topic!r} has {name}={found}, declared with {value}")
    if differences:
        raise TopologyError("the broker differs from what was declared: " + "; ".join(differences))
