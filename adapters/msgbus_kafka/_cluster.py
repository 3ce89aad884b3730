"""Questions to the cluster: topics, their settings, offsets, and what a group has committed.

aiokafka's admin client lacks half of these and does not check the group-level error of an offset fetch (a
coordinator that is still loading would look like a group that never committed), so the requests are sent here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import aiokafka.errors as kafka
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.conn import create_conn
from aiokafka.protocol.admin import (
    CreateTopicsRequest,
    DeleteGroupsRequest,
    DeleteTopicsRequest,
    DescribeConfigsRequest,
    ListGroupsRequest,
)
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from msgbus.errors import AccessDenied
from msgbus_kafka._clients import close_client, mind
from msgbus_kafka._errors import broker_error

__all__ = ["EARLIEST", "LATEST", "Cluster", "Committed", "NewTopic", "TopicInfo"]

LATEST, EARLIEST = -1, -2
_READ_COMMITTED = 1
_TOPIC_RESOURCE = 2
_REQUEST_TIMEOUT = 15.0
_PAUSE = 0.1

Result = TypeVar("Result")


class TopicInfo(NamedTuple):
    """What the cluster says of a topic: its number of partitions and of their replicas."""

    partitions: int
    replication: int


class NewTopic(NamedTuple):
    """A topic to create; -1 stands for the broker's default."""

    name: str
    partitions: int = -1
    replication: int = -1
    config: Mapping[str, str] = {}


class Committed(NamedTuple):
    """What a group committed for a partition."""

    offset: int
    metadata: str


async def _check_login(connection: Any) -> None:
    """Raise what the broker thinks of a login that the library took for accepted: a refused token, above all."""
    response = await connection.send(ListGroupsRequest())
    if (error := kafka.for_code(response.error_code)) is not kafka.NoError:
        raise error("the broker did not take the login")


class Cluster:
    """One connection for questions, separate from those that carry messages.

    Args:
        connection: The arguments every aiokafka client takes.
    """

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self._connection = dict(connection)
        self._client: Any = None
        self._coordinators: dict[str, int] = {}

    async def open(self) -> None:
        """Connect; raises `BrokerUnavailable` or `AccessDenied`."""
        client = AIOKafkaClient(**self._connection, request_timeout_ms=int(_REQUEST_TIMEOUT * 1000))
        self._client = client
        try:
            await client.bootstrap()
            mind(client)
            await self.ping()  # bootstrapping keeps no connection
        except BaseException as exc:
            await self.aclose()
            if isinstance(exc, kafka.KafkaError):
                raise broker_error(await self._why(exc), "connecting") from exc
            raise

    async def _why(self, error: Exception) -> Exception:
        """Return what really went wrong: bootstrapping only says that no server would do."""
        arguments = {k: v for k, v in self._connection.items() if k != "bootstrap_servers"}
        for server in self._connection["bootstrap_servers"]:
            host, _, port = server.rpartition(":")
            try:
                connection = await create_conn(host.strip("[]"), int(port), request_timeout_ms=3000, **arguments)
                try:
                    await _check_login(connection)
                finally:
                    connection.close()
            except (OSError, kafka.KafkaError, TimeoutError) as exc:
                if isinstance(broker_error(exc, ""), AccessDenied):
                    return exc
                error = exc
        return error

    async def aclose(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await close_client(client)

    async def ping(self) -> None:
        """Ask any broker something cheap; raises what went wrong."""
        await self._send(MetadataRequest([], allow_auto_topic_creation=False))

    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        """Describe the topics *names* that exist (all, for None), without ever creating one."""
        if names is not None and not names:
            return {}
        response = await self._retry(
            lambda: self._send(
                MetadataRequest(None if names is None else list(names), allow_auto_topic_creation=False)
            ),
            "describing topics",
        )
        found: dict[str, TopicInfo] = {}
        for code, name, internal, partitions in response.topics:
            error = kafka.for_code(code)
            if error is kafka.NoError and not (internal and names is None):
                found[name] = TopicInfo(len(partitions), max((len(p[3]) for p in partitions), default=0))
            elif error in (kafka.TopicAuthorizationFailedError, kafka.InvalidTopicError) and names is not None:
                raise broker_error(error(f"topic {name!r}"), "describing topics")
        return found

    async def create(self, topics: Sequence[NewTopic]) -> dict[str, tuple[type[kafka.KafkaError], str]]:
        """Create topics; return each failed one's error and the broker's explanation."""
        requests: list[Any] = [(t.name, t.partitions, t.replication, [], list(t.config.items())) for t in topics]
        response = await self._retry(
            lambda: self._to_controller(CreateTopicsRequest(requests, int(_REQUEST_TIMEOUT * 1000), False)),
            "creating topics",
        )
        return {
            name: (kafka.for_code(code), message or kafka.for_code(code).__name__)
            for name, code, message in response.topic_errors
            if code
        }

    async def delete(self, topics: Sequence[str], groups: Sequence[str]) -> None:
        """Delete groups, which must have no members, then topics; what does not exist is deleted already."""
        for group in groups:
            await self._retry(lambda group=group: self._delete_group(group), "deleting a group")  # type: ignore[misc]
        request = DeleteTopicsRequest(list(topics), int(_REQUEST_TIMEOUT * 1000))
        response = await self._retry(lambda: self._to_controller(request), "deleting topics")
        for topic, code, *_ in response.topic_error_codes:
            error = kafka.for_code(code)
            if error not in (kafka.NoError, kafka.UnknownTopicOrPartitionError):
                raise broker_error(error(topic), "deleting topics")

    async def _delete_group(self, group: str) -> None:
        node = await self._client.coordinator_lookup(CoordinationType.GROUP, group)
        response = await self._client.send(node, DeleteGroupsRequest([group]))
        ((_, code),) = response.results
        error = kafka.for_code(code)
        if error not in (kafka.NoError, kafka.GroupIdNotFound):
            raise error(group)

    async def configs(self, topics: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the settings of *topics*."""
        if not topics:
            return {}
        request = DescribeConfigsRequest([(_TOPIC_RESOURCE, topic, None) for topic in topics])
        response = await self._retry(lambda: self._send(request), "reading topic settings")
        found = {}
        for code, message, _, name, entries in response.resources:
            if code:
                raise broker_error(kafka.for_code(code)(message), f"reading the settings of {name!r}")
            found[name] = {entry[0]: entry[1] for entry in entries}
        return found

    async def offsets(
        self, partitions: Iterable[TopicPartition], at: int, *, committed_only: bool = True
    ) -> dict[TopicPartition, int]:
        """Return the offset of the first record at or after a time.

        Args:
            partitions: Of which partitions.
            at: Milliseconds since 1970, `EARLIEST` or `LATEST`.
            committed_only: Whether the end is before the first open transaction.

        Returns:
            The offset by partition; -1 where no record is that young.
        """
        wanted = list(partitions)
        return await self._retry(lambda: self._offsets(wanted, at, committed_only), "looking up offsets")

    async def _offsets(
        self, partitions: Sequence[TopicPartition], at: int, committed_only: bool
    ) -> dict[TopicPartition, int]:
        by_node: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for tp, leader in (await self._leaders(partitions)).items():
            by_node[leader][tp.topic].append((tp.partition, at))
        found: dict[TopicPartition, int] = {}
        for node, topics in by_node.items():
            request = OffsetRequest(-1, _READ_COMMITTED if committed_only else 0, list(topics.items()))
            answer = await self._client.send(node, request)
            for topic, results in answer.topics:
                for partition, code, _, offset in results:
                    if code:
                        raise kafka.for_code(code)(f"{topic} {partition}")
                    found[TopicPartition(topic, partition)] = offset
        return found

    async def _leaders(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        response = await self._send(
            MetadataRequest(sorted({tp.topic for tp in partitions}), allow_auto_topic_creation=False)
        )
        leaders = {TopicPartition(t[1], p[1]): p[2] for t in response.topics for p in t[3]}
        for tp in partitions:
            if leaders.get(tp, -1) == -1:
                raise kafka.LeaderNotAvailableError(f"{tp.topic} {tp.partition}")
        return {tp: leaders[tp] for tp in partitions}

    async def fetch(self, tp: TopicPartition, offset: int, largest: int) -> tuple[bytes, list[tuple[int, int]]]:
        """Return what is stored from the batch with *offset* on, at least that batch, as the broker has it.

        Returns:
            The bytes, and the aborted transactions among them as producer and first offset.
        """
        return await self._retry(lambda: self._fetch(tp, offset, largest), "reading a batch")

    async def _fetch(self, tp: TopicPartition, offset: int, largest: int) -> tuple[bytes, list[tuple[int, int]]]:
        node = (await self._leaders([tp]))[tp]
        request = FetchRequest(0, 0, largest, _READ_COMMITTED, [(tp.topic, [(tp.partition, offset, largest)])])
        response = await self._client.send(node, request)
        ((_, ((_, code, _, *data),)),) = response.topics
        if code:
            raise kafka.for_code(code)(f"{tp.topic} {tp.partition}")
        # From v4 on: the last stable offset, more as versions go, the aborted transactions, from v11 on a replica.
        aborted = data[2] if response.API_VERSION >= 11 else data[-2]
        return data[-1], [(producer, first) for producer, first in aborted or ()]

    async def committed(self, group: str, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Committed]:
        """Return what *group* committed; partitions without a commit are left out."""
        by_topic: dict[str, list[int]] = defaultdict(list)
        for tp in partitions:
            by_topic[tp.topic].append(tp.partition)
        request = OffsetFetchRequest(group, list(by_topic.items()))
        response = await self._retry(lambda: self._to_coordinator(group, request), "reading committed offsets")
        found = {}
        for topic, results in response.topics:
            for partition, offset, metadata, _ in results:
                if offset >= 0:
                    found[TopicPartition(topic, partition)] = Committed(offset, metadata or "")
        return found

    async def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets for a group that has no member yet; raises `BrokerError`."""
        by_topic: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for tp, offset in offsets.items():
            by_topic[tp.topic].append((tp.partition, offset, ""))
        request = OffsetCommitRequest(group, -1, "", -1, list(by_topic.items()))
        await self._retry(lambda: self._to_coordinator(group, request), "committing offsets")

    async def _to_coordinator(self, group: str, request: Any) -> Any:
        node = self._coordinators.get(group)
        if node is None:
            node = await self._client.coordinator_lookup(CoordinationType.GROUP, group)
            self._coordinators[group] = node
        try:
            response = await self._client.send(node, request)
        except kafka.KafkaError:
            self._coordinators.pop(group, None)
            raise
        codes = [getattr(response, "error_code", 0), *(code for _, results in response.topics for *_, code in results)]
        for error in (kafka.for_code(code) for code in codes if code):
            self._coordinators.pop(group, None)
            raise error(group)
        return response

    async def _to_controller(self, request: Any) -> Any:
        if self._client.cluster.controller is None:
            await self._client.force_metadata_update()
        controller = self._client.cluster.controller
        response = await self._send(request, None if controller is None else controller.nodeId)
        errors: Any = getattr(response, "topic_errors", None) or getattr(response, "topic_error_codes", ())
        if any(kafka.for_code(error[1]) is kafka.NotControllerError for error in errors):
            await self._client.force_metadata_update()
            raise kafka.NotControllerError
        return response

    async def _send(self, request: Any, node: int | None = None) -> Any:
        client = self._client
        if client is None:
            raise kafka.KafkaConnectionError("closed")
        chosen = client.get_random_node() if node is None else node
        if chosen is None:
            raise kafka.NodeNotReadyError("no broker is known")
        return await client.send(chosen, request)

    async def _retry(self, call: Callable[[], Awaitable[Result]], doing: str) -> Result:
        """Call until it does not fail for a passing reason, for the time of one request."""
        deadline = time.monotonic() + _REQUEST_TIMEOUT
        while True:
            try:
                return await call()
            except kafka.KafkaError as exc:
                if not exc.retriable or time.monotonic() + _PAUSE > deadline:
                    raise broker_error(exc, doing) from exc
                if exc.invalid_metadata and self._client is not None:
                    with contextlib.suppress(kafka.KafkaError):
                        await self._client.force_metadata_update()
            except (OSError, TimeoutError) as exc:
                raise broker_error(exc, doing) from exc
            await asyncio.sleep(_PAUSE)
