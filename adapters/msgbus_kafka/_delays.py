"""Publishing with a delay: the topics messages wait in, and who brings them on."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence

from msgbus.adapter import AdapterConfig, Address, Kind, Source, SubscribeOptions, is_pattern, pattern_regex
from msgbus.errors import BrokerError, PublishError, Unroutable
from msgbus_kafka._cluster import Cluster
from msgbus_kafka._consumer import Membership
from msgbus_kafka._errors import NotNow
from msgbus_kafka._forwarder import FORWARDING, Forwarder
from msgbus_kafka._names import delay_of
from msgbus_kafka._options import Options
from msgbus_kafka._producer import Producer
from msgbus_kafka._subscription import KafkaSubscription, Route
from msgbus_kafka._topology import provide, wanted_for_delay

__all__ = ["Delays"]

_log = logging.getLogger("msgbus.kafka")
_LOOK_EVERY = 10.0
_SUFFIX = re.compile(r"\.\.delay\.\d+\Z")


class Delays:
    """Sees to it that delayed messages have a place to wait, and that those of topics are forwarded.

    Args:
        cluster: Where to ask.
        config: Of the adapter.
        options: The URL's.
        subscribe: Makes a subscription that is not open yet.
        producer: Writes what is due.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: AdapterConfig,
        options: Options,
        subscribe: Callable[[Route, SubscribeOptions], KafkaSubscription],
        producer: Producer,
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._options = options
        self._subscribe = subscribe
        self._producer = producer
        self._prepared: set[tuple[Kind, str]] = set()
        self._forwarders: dict[str, Forwarder] = {}
        self._opening = asyncio.Lock()
        self._looked: dict[Source, float] = {}

    async def prepare(self, address: Address, topic: str) -> None:
        """Make sure that messages can wait for *address*.

        Raises:
            PublishError: They cannot.
        """
        if (address.kind, address.name) in self._prepared:
            return
        try:
            waiting = wanted_for_delay(address, self._options)
            await provide(self._cluster, waiting, self._config.provision, self._options)
            if len(await self._cluster.topics([want.topic for want in waiting])) < len(waiting):
                raise Unroutable(f"{address}: there are no topics to wait in, {waiting[0].topic!r} and its like")
            if address.kind is Kind.TOPIC:
                await self._forward(topic, [want.topic for want in waiting])
        except PublishError:
            raise
        except BrokerError as exc:
            raise _not_now(exc) from exc
        except Exception as exc:
            raise Unroutable(f"{address}: a delay is not possible: {exc}") from exc
        self._prepared.add((address.kind, address.name))

    async def look(self, sources: Iterable[Source]) -> None:
        """Start forwarding to the topics of *sources* for which something may wait."""
        now = self._config.clock.monotonic()
        due = [source for source in sources if self._looked.get(source, -_LOOK_EVERY) + _LOOK_EVERY <= now]
        for source in due:
            self._looked[source] = now
            address = source.address
            if is_pattern(address.name):
                found = await self.matching(pattern_regex(address.name) + _SUFFIX.pattern)
            else:
                found = sorted(await self._cluster.topics(sorted(delay_of(address).values())))
            by_topic: dict[str, list[str]] = {}
            for waiting in found:
                by_topic.setdefault(_SUFFIX.sub("", waiting), []).append(waiting)
            for topic, waiting_topics in by_topic.items():
                await self._forward(topic, waiting_topics)

    async def matching(self, regex: str) -> list[str]:
        """Return the existing topics that match *regex* as a whole."""
        return sorted(topic for topic in await self._cluster.topics() if re.fullmatch(regex, topic))

    async def _forward(self, topic: str, waiting: Sequence[str]) -> None:
        async with self._opening:
            if topic in self._forwarders:
                return
            membership = Membership(group=f"{topic}..delay", topics=tuple(waiting))
            route = Route(membership=membership, side=frozenset(waiting))
            forwarder = Forwarder(topic, self._subscribe(route, FORWARDING), self._producer)
            try:
                await forwarder.open(self._config.connect_timeout, self._ended)
            except BaseException:
                await forwarder.aclose()
                raise
            self._forwarders[topic] = forwarder

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _log.error("forwarding delayed messages stopped, which is a bug", exc_info=error)

    async def aclose(self) -> None:
        """Stop forwarding."""
        async with self._opening:
            await asyncio.gather(*(forwarder.aclose() for forwarder in self._forwarders.values()))
            self._forwarders.clear()


def _not_now(exc: BrokerError) -> PublishError:
    return NotNow(str(exc)) if exc.retryable else Unroutable(str(exc))
