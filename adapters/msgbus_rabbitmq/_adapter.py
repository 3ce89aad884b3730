"""The adapter: connections, and who uses which."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import kombu
from amqp import sasl
from amqp.exceptions import NotFound

from msgbus.adapter import (
    Adapter,
    AdapterConfig,
    BusURL,
    Capabilities,
    Health,
    Outgoing,
    Source,
    Stats,
    SubscribeOptions,
    Topology,
    parse_options,
)
from msgbus.errors import (
    BrokerUnavailable,
    ChannelError,
    ConfigError,
    MessageTooLarge,
    PublishError,
    PublishRejected,
    TopologyError,
)
from msgbus_rabbitmq._errors import translate
from msgbus_rabbitmq._layout import MAX_DELAY, Layout
from msgbus_rabbitmq._link import Link, Target
from msgbus_rabbitmq._message import CHANNEL
from msgbus_rabbitmq._options import Options
from msgbus_rabbitmq._publisher import Parcel, Publisher
from msgbus_rabbitmq._subscription import RabbitSubscription
from msgbus_rabbitmq._topology import Declarer, in_thread
from msgbus_rabbitmq._wire import Login

__all__ = ["RabbitMQAdapter"]

_PORT, _TLS_PORT = 5672, 5671
_PAUSE = 0.2
"""Seconds before declaring is tried again."""


class RabbitMQAdapter(Adapter):
    """RabbitMQ, over kombu and py-amqp. See the package's page for the URL and what to expect."""

    name: ClassVar[str] = "amqp"

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        self._options = parse_options(url, Options)
        self.capabilities = Capabilities(
            groups=True,
            patterns=True,
            order="key",
            max_delay=MAX_DELAY,
            delivery_count="approximate",
            unroutable=True,
            durable=True,
            requests="channels",
            remove=True,
            priority=True,
            max_body=self._options.max_body,
            max_batch=500,
            max_settle=1000,
            publish_window=8,
        )
        secure = url.scheme == "amqps"
        self._vhost = url.path.removeprefix("/") or "/"
        self._hosts = tuple((host, port or (_TLS_PORT if secure else _PORT)) for host, port in url.hosts) or (
            ("localhost", _TLS_PORT if secure else _PORT),
        )
        self._tls = self._tls_context() if secure else None
        self._layout = Layout(self._options)
        self._declarer = Declarer(self._kombu, self._layout, config.provision)
        self._subscriptions: set[RabbitSubscription] = set()
        self._kombu_connection: kombu.Connection | None = None
        self._make_links()

    def _make_links(self) -> None:
        self._publishing = Link(self._target("publish"), self._update_health)
        self._consuming = Link(self._target("consume"), self._update_health)
        self._publisher = Publisher(self._publishing, self.config.clock)

    # -- connecting ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Adapter.open`."""
        try:
            await self._publishing.open()
            await self._consuming.open()
        except BaseException:
            await self.aclose()
            raise

    def _target(self, purpose: str) -> Target:
        user, password = self._credentials()
        mechanism: sasl.SASL = sasl.EXTERNAL() if self._options.auth == "external" else sasl.PLAIN(user, password)
        login = Login(
            mechanism.mechanism.decode(),
            mechanism.start(None),
            self._vhost,
            self._options.heartbeat,
            f"{self.config.service} {self.config.instance} {purpose}",
        )
        return Target(self._hosts, self._tls, login, self.config.connect_timeout)

    def _credentials(self) -> tuple[str, str]:
        return self.url.username or "guest", "guest" if self.url.password is None else self.url.password

    def _tls_context(self) -> ssl.SSLContext:
        options = self._options
        try:
            context = ssl.create_default_context(cafile=options.ca)
            if options.cert:
                context.load_cert_chain(options.cert, options.key)
        except OSError as exc:
            raise ConfigError(f"{self.url}: the certificates cannot be loaded: {exc}") from exc
        return context

    def _kombu(self) -> kombu.Connection:
        """Return a kombu connection to the host in use, not yet connected."""
        host, port = self._consuming.host
        user, password = self._credentials()
        options = self._options
        tls: dict[str, object] | bool = self._tls is not None and {
            "ca_certs": options.ca,
            "certfile": options.cert,
            "keyfile": options.key,
            "cert_reqs": ssl.CERT_REQUIRED,
            "server_hostname": host,
        }
        return kombu.Connection(
            transport="pyamqp",
            hostname=host,
            port=port,
            userid=user,
            password=password,
            virtual_host=self._vhost,
            ssl=tls,
            login_method=options.auth.upper(),
            connect_timeout=self.config.connect_timeout,
            transport_options={
                "read_timeout": self.config.connect_timeout,
                "client_properties": {"connection_name": f"{self.config.service} {self.config.instance} declare"},
            },
        )

    @property
    def raw(self) -> kombu.Connection:
        """A kombu connection of its own (synchronous; connects when first used, closed with the adapter)."""
        if self._kombu_connection is None:
            self._kombu_connection = self._kombu()
        return self._kombu_connection

    def _update_health(self) -> None:
        trouble = self._publishing.trouble or self._consuming.trouble
        self.health = Health(not trouble, trouble)

    # -- working ------------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`. Begins again when the broker goes away meanwhile, for as long as to connect."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.config.connect_timeout
        while True:
            await self._consuming.ready()
            try:
                await self._declarer.declare(topology)
            except BrokerUnavailable:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                return

    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[PublishError | None]:
        """See `Adapter.publish`."""
        results: list[PublishError | None] = [None] * len(batch)
        parcels: dict[int, Parcel] = {}
        for index, outgoing in enumerate(batch):
            if (size := len(outgoing.body)) > self._options.max_body:
                results[index] = MessageTooLarge(size, self._options.max_body)
                continue
            try:
                parcels[index] = self._parcel(outgoing)
            except (ConfigError, ChannelError) as exc:  # one message's channel must not fail the others
                error = results[index] = PublishRejected(str(exc))
                error.__cause__ = exc
        for index, failure in zip(parcels, await self._publisher.send(list(parcels.values())), strict=True):
            results[index] = failure
        return results

    def post(self, outgoing: Outgoing, done: Callable[[PublishError | None], None]) -> bool:
        """See `Adapter.post`."""
        if len(outgoing.body) > self._options.max_body:
            return False
        try:
            parcel = self._parcel(outgoing)
        except (ConfigError, ChannelError):
            return False  # `publish` says why
        return self._publisher.post(parcel, done)

    def _parcel(self, outgoing: Outgoing) -> Parcel:
        route = self._layout.route(outgoing.target, outgoing.headers)
        if outgoing.channel and route.past_topics:
            route = replace(route, extra={**route.extra, CHANNEL: outgoing.channel})
        if outgoing.delay > 0:
            route = route.delayed(outgoing.delay)
        return Parcel(route, outgoing.headers, outgoing.body)

    async def subscribe(self, source: Source, options: SubscribeOptions) -> RabbitSubscription:
        """See `Adapter.subscribe`."""
        subscription = RabbitSubscription(
            self._consuming, self._publisher, self._layout, self._redeclare, source, options, self.config
        )
        subscription.on_close = self._subscriptions.discard
        await subscription.open()
        self._subscriptions.add(subscription)
        return subscription

    async def _redeclare(self, source: Source) -> None:
        await self._declarer.declare(Topology(sources=(source,)))

    async def stats(self, source: Source) -> Stats:
        """See `Adapter.stats`. AMQP tells how many are ready, not how many are in flight or delayed.

        Ready is also what waits in our own subscriptions' buffers; what waits in other processes' is in flight.
        """
        try:
            ready = [(await self._consuming.count(queue))[0] for queue in self._layout.queues(source)]
            dead = await self._dead(source)
        except NotFound as exc:
            raise TopologyError(f"{source} does not exist: {exc.reply_text}") from exc
        except Exception as exc:
            raise translate(exc, f"cannot look at {source}") from exc
        buffered = sum(s.buffered for s in self._subscriptions if s.source == source)
        return Stats(ready=sum(ready) + buffered, dead=dead)

    async def _dead(self, source: Source) -> int | None:
        if source.dead:
            return None
        try:
            return (await self._consuming.count(self._layout.dead_queue(source)))[0]
        except NotFound:
            return 0

    async def remove(self, source: Source) -> None:
        """See `Adapter.remove`. Of a queue that was joined (``"declare": False``) only our dead letters go."""
        await self._consuming.ready()
        await self._declarer.remove(source)

    async def aclose(self) -> None:
        """See `Adapter.aclose`."""
        for subscription in list(self._subscriptions):
            await subscription.aclose()
        await self._publishing.aclose()
        await self._consuming.aclose()
        if self._kombu_connection is not None:
            connection, self._kombu_connection = self._kombu_connection, None
            await in_thread(connection.release)
        self.health = Health(False, "closed")
