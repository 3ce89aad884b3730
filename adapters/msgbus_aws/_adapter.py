"""The adapter: publishes, declares, and makes subscriptions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from botocore.exceptions import BotoCoreError, ClientError

from msgbus.adapter import (
    Adapter,
    AdapterConfig,
    Address,
    BusURL,
    Capabilities,
    Health,
    Kind,
    Outgoing,
    Source,
    Stats,
    SubscribeOptions,
    Subscription,
    Topology,
)
from msgbus.errors import (
    AccessDenied,
    BrokerError,
    BrokerUnavailable,
    ChannelError,
    MessageTooLarge,
    NotSent,
    PublishError,
    PublishRejected,
    TopologyError,
    Unroutable,
)
from msgbus_aws._claims import Claims
from msgbus_aws._errors import Busy, Gone, unpublished
from msgbus_aws._later import Later
from msgbus_aws._link import Link
from msgbus_aws._moves import delayed
from msgbus_aws._names import queue_of
from msgbus_aws._options import AwsOptions, read_options
from msgbus_aws._outbox import Destination, Letter, Outbox
from msgbus_aws._replies import ReplySubscription, make_reply_queue
from msgbus_aws._subscription import SqsSubscription
from msgbus_aws._tools import Tools
from msgbus_aws._topology import Provisioner, needs_later
from msgbus_aws._wire import fit, group_id, pack, wrap

__all__ = ["SqsAdapter"]

_HEADERS = 32 * 1024
"""Bytes of a message that are kept for its headers."""
_TICK = 0.25
"""Seconds between two looks at the clock; leases are measured with this precision."""
_LONGEST_DELAY = 14 * 86_400.0
_COUNTS = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)


class SqsAdapter(Adapter):
    """Amazon SQS, with SNS for topics, over boto3. `msgbus_aws` describes URL, options, guarantees and limits."""

    name: ClassVar[str] = "sqs"

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        place, options = read_options(url)
        self.capabilities = _capabilities(options)
        self._options = options
        self._link = link = Link(place, options, config, self._set_health)
        self._provisioner = Provisioner(link, config)
        self._outbox = Outbox(link)
        self._claims = Claims(link)
        self._subscriptions: set[SqsSubscription] = set()
        self._tools = Tools(link, config, self._provisioner, self._outbox, self._claims, self._subscriptions.discard)
        self._later = Later(self._tools)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def raw(self) -> Any:
        """The boto3 SQS client."""
        return self._link.sqs

    def _set_health(self, health: Health) -> None:
        self.health = health

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Adapter.open`."""
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                await self._link.open()
        except BaseException as exc:
            await self._link.aclose()
            self.health = Health(False, str(exc) or type(exc).__name__)
            if isinstance(exc, TimeoutError):
                raise BrokerUnavailable(f"{self.url} did not answer in {self.config.connect_timeout:g} s") from exc
            if isinstance(exc, AccessDenied | BrokerUnavailable):
                raise type(exc)(f"{self.url}: {exc}") from exc
            raise
        self.health = Health(True)
        self._spawn(self._tick())

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        clock = self.config.clock
        while True:
            self._tools.ticked = now = clock.monotonic()
            for subscription in list(self._subscriptions):
                subscription.tick(now)
            await clock.sleep(_TICK)

    async def aclose(self) -> None:
        """See `Adapter.aclose`."""
        if self._closed:
            return
        self._closed = True
        self.health = Health(False, "closed")
        try:
            await self._later.aclose()
            await asyncio.gather(*(subscription.aclose() for subscription in list(self._subscriptions)))
            await self._outbox.aclose()
        finally:
            for task in self._tasks:
                task.cancel()
            await self._link.aclose()

    # -- topology -----------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        self._link.check_open()
        await self._provisioner.declare(topology)

    async def remove(self, source: Source) -> None:
        """See `Adapter.remove`."""
        self._link.check_open()
        for destination in await self._provisioner.remove(source):
            self._outbox.forget(destination.target)

    async def stats(self, source: Source) -> Stats:
        """See `Adapter.stats`. The figures are SQS's approximate ones, up to a minute behind."""
        self._link.check_open()
        ready, in_flight, waiting = await self._count(source)
        dead = None if source.dead else sum(await self._count(source.dead_letters))
        return Stats(ready=ready, in_flight=in_flight, delayed=waiting, dead=dead)

    async def _count(self, source: Source) -> tuple[int, int, int]:
        queue = queue_of(source)
        try:
            answer = await self._link.call(
                "sqs",
                "get_queue_attributes",
                f"figures of queue {queue.name!r}",
                QueueUrl=await self._provisioner.queue_url(queue),
                AttributeNames=list(_COUNTS),
            )
        except Gone as exc:
            raise TopologyError(f"queue {queue.name!r} of {source} does not exist") from exc
        ready, in_flight, waiting = (int(answer["Attributes"][name]) for name in _COUNTS)
        return ready, in_flight, waiting

    # -- publishing ---------------------------------------------------------------------------------------------

    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        """See `Adapter.publish`."""
        self._link.check_open()
        results: list[PublishError | None] = [None] * len(batch)
        letters: list[Letter] = []
        places: list[int] = []
        found: dict[int, Destination] = {}  # by target: looked for once, most batches have but one
        for index, outgoing in enumerate(batch):
            try:
                letters.append(await self._letter(outgoing, found))
                places.append(index)
            except PublishError as exc:
                results[index] = exc
            except (ChannelError, BrokerError) as exc:
                results[index] = _not_sent(exc)
        for index, letter, error in zip(places, letters, await self._outbox.send(letters), strict=True):
            results[index] = error
            if isinstance(error, Unroutable):
                self._provisioner.forget(letter.destination)
        return results

    async def _letter(self, outgoing: Outgoing, found: dict[int, Destination]) -> Letter:
        if len(outgoing.body) > self.capabilities.max_body:
            raise MessageTooLarge(len(outgoing.body), self.capabilities.max_body)
        target = outgoing.target
        seconds, due = delayed(outgoing.delay, self.config.clock.now())
        if seconds and isinstance(target, Address) and needs_later(target):
            to = await self._provisioner.ensure_later(target)
            self._later.look_after(target)
        elif id(target) in found:
            to = found[id(target)]
        else:
            to = found[id(target)] = await self._provisioner.find(target)
        parcel = pack(wrap(outgoing.body), outgoing.headers, due=due)
        if parcel.size > self._options.max_message and self._options.large:
            try:
                parcel = pack(await self._claims.put(outgoing.body), outgoing.headers, due=due)
            except (BotoCoreError, ClientError) as exc:
                raise unpublished(
                    exc, "s3", f"storing a large body in {self._options.large}", size=parcel.size, limit=0
                ) from exc
        # A message for one source is a replay: meant to be stored although its id was stored before.
        dedupe = fit(outgoing.id) if isinstance(target, Address) else uuid.uuid4().hex
        return Letter(to, parcel, group_id(outgoing.key, outgoing.id), dedupe, seconds)

    # -- consuming ----------------------------------------------------------------------------------------------

    async def subscribe(self, source: Source, options: SubscribeOptions) -> Subscription:
        """See `Adapter.subscribe`."""
        self._link.check_open()
        if source.address.kind is Kind.REPLY:
            return await self._answers(source, options)
        try:
            queue = await self._provisioner.find_queue(queue_of(source))
        except Gone as exc:
            raise TopologyError(f"the queue of {source} does not exist: {exc}") from exc
        subscription = SqsSubscription(self._tools, source, options, queue)
        self._subscriptions.add(subscription)
        if needs_later(source.address) and not source.dead:
            self._later.look_after(source.address)
        return subscription

    async def _answers(self, source: Source, options: SubscribeOptions) -> Subscription:
        queue = await make_reply_queue(self._tools)
        subscription = ReplySubscription(self._tools, source, options, queue)
        subscription.address = queue.target.rpartition("/")[2]
        self._subscriptions.add(subscription)
        subscription.look_after()
        return subscription


def _not_sent(exc: Exception) -> PublishError:
    """Return the error of a message whose destination could not be found."""
    kind: type[NotSent] = PublishRejected
    if isinstance(exc, Gone):
        kind = Unroutable
    elif isinstance(exc, BrokerUnavailable):
        kind = Busy
    error = kind(str(exc))
    error.__cause__ = exc
    return error


def _max_body(options: AwsOptions) -> int:
    """Return the largest body that fits whatever it is: in base64 four characters stand for three bytes."""
    return options.max_large if options.large else (options.max_message - _HEADERS) // 4 * 3


def _capabilities(options: AwsOptions) -> Capabilities:
    return Capabilities(
        groups=options.sns,
        order="key",
        max_delay=_LONGEST_DELAY,
        delivery_count="approximate",
        lease="renewable",
        remove=True,
        unroutable=True,
        durable=True,
        max_body=_max_body(options),
        max_batch=100,
        max_settle=100,
        publish_window=4,
    )
