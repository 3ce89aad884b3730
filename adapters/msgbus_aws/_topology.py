"""Making queues, topics and subscriptions, finding them, and removing them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from msgbus.adapter import AdapterConfig, Address, Kind, Provision, Source, Topology
from msgbus.errors import BrokerError, TopologyError
from msgbus_aws._errors import Gone, code_of
from msgbus_aws._link import Link
from msgbus_aws._names import QueueName, TopicName, filter_policy, later_queue, queue_of, topic_of
from msgbus_aws._outbox import Destination

__all__ = ["Provisioner", "needs_later"]


def needs_later(address: Address) -> bool:
    """Tell whether delayed messages wait beside *address*: topics and FIFO queues delay no single message."""
    return address.kind is Kind.TOPIC or address.keyed


class Provisioner:
    """Knows where everything is, and makes what is missing.

    Args:
        link: The clients.
        config: Whether to create, to verify or to skip.
    """

    def __init__(self, link: Link, config: AdapterConfig) -> None:
        self._link = link
        self._options = link.options
        self._provision = config.provision
        self._urls: dict[str, str] = {}
        self._arns: dict[str, str] = {}
        self._changing_policy = asyncio.Lock()

    # -- finding ------------------------------------------------------------------------------------------------

    async def find(self, target: Address | Source) -> Destination:
        """Return where to publish.

        Raises:
            Gone: It does not exist.
        """
        if isinstance(target, Address) and target.kind is Kind.TOPIC:
            topic = topic_of(target)
            return Destination("sns", await self.topic_arn(topic), f"topic {topic.name!r}", topic.fifo)
        queue = queue_of(target if isinstance(target, Source) else Source(target))
        return await self.find_queue(queue)

    async def find_queue(self, queue: QueueName) -> Destination:
        """Return a queue's destination."""
        return Destination("sqs", await self.queue_url(queue), f"queue {queue.name!r}", queue.fifo)

    async def queue_url(self, queue: QueueName) -> str:
        """Return a queue's URL; raises `Gone` when there is no such queue."""
        url = queue.url or self._urls.get(queue.name)
        if url is None:
            owner = queue.owner or self._link.place.account
            arguments: dict[str, Any] = {"QueueOwnerAWSAccountId": owner} if owner else {}
            answer = await self._link.call(
                "sqs", "get_queue_url", f"queue {queue.name!r}", QueueName=queue.name, **arguments
            )
            url = self._urls[queue.name] = str(answer["QueueUrl"])
        return url

    async def topic_arn(self, topic: TopicName) -> str:
        """Return a topic's ARN; raises `Gone` when there is no such topic."""
        if topic.arn:
            return topic.arn
        arn = self._arns.get(topic.name)
        if arn is None:
            arn = self._arns[topic.name] = await self._look_for_topic(topic)
        return arn

    async def _look_for_topic(self, topic: TopicName) -> str:
        place = self._link.place
        if place.account:
            arn = f"arn:{self._link.partition}:sns:{place.region}:{place.account}:{topic.name}"
            await self._link.call("sns", "get_topic_attributes", f"topic {topic.name!r}", TopicArn=arn)
            return arn
        more: dict[str, Any] = {}
        while True:
            page = await self._link.call("sns", "list_topics", f"looking for topic {topic.name!r}", **more)
            for found in page.get("Topics", ()):
                if found["TopicArn"].rpartition(":")[2] == topic.name:
                    return str(found["TopicArn"])
            if "NextToken" not in page:
                raise Gone(f"topic {topic.name!r} does not exist")
            more = {"NextToken": page["NextToken"]}

    def forget(self, destination: Destination) -> None:
        """Look again next time: what was there before is not any more."""
        for known in (self._urls, self._arns):
            for name in [name for name, target in known.items() if target == destination.target]:
                del known[name]

    # -- declaring ----------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        """Create or verify everything that *topology* names."""
        addresses = dict.fromkeys([*topology.addresses, *(s.address for s in topology.sources)])
        for source in topology.sources:  # names first: nothing is made when one of them cannot be
            queue_of(source)
            queue_of(source.dead_letters)
        for address in addresses:
            topic_of(address) if address.kind is Kind.TOPIC else queue_of(Source(address))
            if needs_later(address):
                later_queue(address)
        if self._provision is Provision.SKIP:
            return
        await _all(self._declare_address(a) for a in addresses if a.kind is not Kind.REPLY)
        await _all(self._declare_source(s) for s in topology.sources if s.address.kind is not Kind.REPLY)

    async def _declare_address(self, address: Address) -> None:
        if address.kind is Kind.TOPIC:
            await self._ensure_topic(address)
        else:
            await self._ensure_queue(Source(address))

    async def _declare_source(self, source: Source) -> None:
        if source.address.kind is Kind.TOPIC:
            await self._ensure_queue(source.alive)
            await self._ensure_subscription(source.alive)
        # A queue's own was declared with its address.

    async def ensure_later(self, address: Address) -> Destination:
        """Return the queue in which delayed messages of *address* wait; make it if that is allowed."""
        queue = later_queue(address)
        try:
            return await self.find_queue(queue)
        except Gone:
            if self._provision is not Provision.CREATE:
                raise
        await self._create(queue, address, {})
        return await self.find_queue(queue)

    async def _ensure_topic(self, address: Address) -> None:
        topic = topic_of(address)
        if topic.arn or self._provision is Provision.VERIFY:
            try:
                arn = await self.topic_arn(topic)
                await self._link.call("sns", "get_topic_attributes", f"topic {topic.name!r}", TopicArn=arn)
            except Gone as exc:
                self._arns.pop(topic.name, None)
                raise TopologyError(f"topic {topic.name!r} of {address} does not exist") from exc
            return
        if topic.name in self._arns:
            return
        attributes = {"FifoTopic": "true", "ContentBasedDeduplication": "false"} if topic.fifo else {}
        if self._options.kms:
            attributes["KmsMasterKeyId"] = self._options.kms
        answer = await self._create_call(
            "sns", "create_topic", f"topic {topic.name!r}", Name=topic.name, Attributes=attributes
        )
        self._arns[topic.name] = str(answer["TopicArn"])

    async def _ensure_queue(self, source: Source) -> None:
        """See to the queue of *source* and to its dead letters."""
        queue, dead = queue_of(source), queue_of(source.dead_letters)
        exists, dead_exists = await asyncio.gather(self._exists(queue), self._exists(dead))
        creating = self._provision is Provision.CREATE
        if not exists and (not creating or not queue.ours):
            raise TopologyError(f"queue {queue.name!r} of {source} does not exist")
        if not dead_exists and not creating:
            raise TopologyError(f"queue {dead.name!r}, for the dead letters of {source}, does not exist")
        if not exists and await self._exists(QueueName(queue.lane_sibling, not queue.fifo)):
            raise TopologyError(
                f"{source} was declared {'with' if queue.fifo else 'without'} a key, and exists "
                f"{'without' if queue.fifo else 'with'} one, as queue {queue.lane_sibling!r}"
            )
        if not dead_exists:
            await self._create(dead, source.address, {})
        if not exists:
            redrive = {
                "deadLetterTargetArn": await self.queue_arn(dead),
                "maxReceiveCount": self._options.max_receive_count,
            }
            await self._create(queue, source.address, {"RedrivePolicy": json.dumps(redrive)})

    async def _exists(self, queue: QueueName) -> bool:
        try:
            await self.queue_url(queue)
        except Gone:
            return False
        return True

    async def queue_arn(self, queue: QueueName) -> str:
        """Return a queue's ARN."""
        return (await self._attributes(queue, "QueueArn"))["QueueArn"]

    async def _attributes(self, queue: QueueName, *names: str) -> dict[str, str]:
        answer = await self._link.call(
            "sqs",
            "get_queue_attributes",
            f"attributes of queue {queue.name!r}",
            QueueUrl=await self.queue_url(queue),
            AttributeNames=list(names),
        )
        return dict(answer.get("Attributes", {}))

    async def _create(self, queue: QueueName, address: Address, attributes: dict[str, str]) -> None:
        wanted = {"MessageRetentionPeriod": str(self._options.retention), **attributes}
        if queue.fifo:
            # Each message group has a dedupe and a throughput of its own, so that keys do not wait for each other.
            wanted |= {
                "FifoQueue": "true",
                "DeduplicationScope": "messageGroup",
                "FifoThroughputLimit": "perMessageGroupId",
            }
        if self._options.kms:
            wanted["KmsMasterKeyId"] = self._options.kms
        wanted |= {str(k): str(v) for k, v in (address.native.get("attributes") or {}).items()}
        answer = await self._create_call(
            "sqs", "create_queue", f"queue {queue.name!r}", QueueName=queue.name, Attributes=wanted
        )
        self._urls[queue.name] = str(answer["QueueUrl"])

    async def _create_call(self, service: str, method: str, what: str, **arguments: Any) -> dict[str, Any]:
        try:
            return await self._link.call(service, method, f"creating {what}", **arguments)
        except BrokerError as exc:
            if code_of(exc.__cause__) in ("QueueAlreadyExists", "QueueNameExists", "InvalidParameter"):
                raise TopologyError(f"{what} exists and differs: {exc}") from exc
            raise

    # -- subscriptions ------------------------------------------------------------------------------------------

    async def _ensure_subscription(self, source: Source) -> None:
        topic, queue = topic_of(source.address), queue_of(source)
        arn, endpoint = await self.topic_arn(topic), await self.queue_arn(queue)
        if self._provision is Provision.VERIFY:
            if await self._subscription(arn, endpoint) is None:
                raise TopologyError(f"queue {queue.name!r} of {source} is not subscribed to topic {topic.name!r}")
            return
        async with (
            self._changing_policy
        ):  # read, changed, written: two topics of one queue must not overtake each other
            await self._let_in(queue, endpoint, arn)
        attributes = {"RawMessageDelivery": "true"}
        if policy := filter_policy(source.address):
            attributes["FilterPolicy"] = json.dumps(policy)
            attributes["FilterPolicyScope"] = str(source.address.native.get("filter_scope", "MessageAttributes"))
        await self._create_call(
            "sns",
            "subscribe",
            f"subscription of queue {queue.name!r} to topic {topic.name!r}",
            TopicArn=arn,
            Protocol="sqs",
            Endpoint=endpoint,
            Attributes=attributes,
            ReturnSubscriptionArn=True,
        )

    async def _let_in(self, queue: QueueName, endpoint: str, topic_arn: str) -> None:
        """Let this topic, and nobody else, publish to the queue; what its policy allows already stays."""
        text = (await self._attributes(queue, "Policy")).get("Policy", "")
        policy: dict[str, Any] = json.loads(text) if text else {"Version": "2012-10-17", "Statement": []}
        statements = policy["Statement"] if isinstance(policy["Statement"], list) else [policy["Statement"]]
        wanted = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": endpoint,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic_arn}},
        }
        if any(wanted.items() <= statement.items() for statement in statements):
            return
        policy["Statement"] = [*statements, wanted]
        await self._link.call(
            "sqs",
            "set_queue_attributes",
            f"policy of queue {queue.name!r}",
            QueueUrl=await self.queue_url(queue),
            Attributes={"Policy": json.dumps(policy)},
        )

    async def _subscription(self, topic_arn: str, endpoint: str) -> str | None:
        more: dict[str, Any] = {}
        while True:
            page = await self._link.call(
                "sns", "list_subscriptions_by_topic", f"subscriptions of {topic_arn}", TopicArn=topic_arn, **more
            )
            for found in page.get("Subscriptions", ()):
                if found["Endpoint"] == endpoint:
                    return str(found["SubscriptionArn"])
            if not page.get("NextToken"):
                return None
            more = {"NextToken": page["NextToken"]}

    # -- removing -----------------------------------------------------------------------------------------------

    async def remove(self, source: Source) -> Sequence[Destination]:
        """Remove a source with its dead letters; return what is gone."""
        queue = queue_of(source)
        if not queue.ours:
            raise TopologyError(
                f"queue {queue.name!r} of {source} is joined, not ours: remove it with the tools of AWS"
            )
        if source.address.kind is Kind.TOPIC:
            await self._unsubscribe(source, queue)
        gone = [queue, queue_of(source.dead_letters)]
        if source.address.kind is not Kind.TOPIC and needs_later(source.address):
            gone.append(later_queue(source.address))
        return [found for found in [await self._delete(queue) for queue in gone] if found is not None]

    async def _unsubscribe(self, source: Source, queue: QueueName) -> None:
        try:
            found = await self._subscription(
                await self.topic_arn(topic_of(source.address)), await self.queue_arn(queue)
            )
        except Gone:
            return
        if found is not None:
            await self._link.call("sns", "unsubscribe", f"unsubscribing {source}", SubscriptionArn=found)

    async def _delete(self, queue: QueueName) -> Destination | None:
        try:
            destination = await self.find_queue(queue)
            await self._link.call("sqs", "delete_queue", f"deleting queue {queue.name!r}", QueueUrl=destination.target)
        except Gone:
            self._urls.pop(queue.name, None)
            return None
        self.forget(destination)
        return destination


async def _all(calls: Any) -> None:
    """Run *calls* at once; when one fails, wait for the others and raise its error."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
