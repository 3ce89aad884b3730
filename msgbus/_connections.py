"""The brokers a bus speaks to: one adapter per URL, opened once, and what was declared on each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgbus._config import Settings
from msgbus._names import is_pattern, match_name
from msgbus._publisher import Publisher, PublishMiddleware
from msgbus._registry import adapter_class
from msgbus._requests import Requester
from msgbus._url import BusURL
from msgbus.adapter import Adapter, AdapterConfig, Address, Kind, Source, Topology
from msgbus.errors import BrokerUnavailable, UnsupportedFeature

__all__ = ["Connection", "Connections"]


class Connection:
    """One opened adapter with its publisher and, once somebody asks, its requester."""

    def __init__(self, adapter: Adapter, publisher: Publisher, requester: Requester) -> None:
        self.adapter = adapter
        self.publisher = publisher
        self.requester = requester
        self._declared: set[Address | Source] = set()
        self._declaring = asyncio.Lock()

    def is_declared(self, address: Address) -> bool:
        """Tell whether *address* was declared before."""
        return address in self._declared

    async def declare(self, addresses: Iterable[Address] = (), sources: Iterable[Source] = ()) -> None:
        """Declare what was not declared before.

        Raises:
            UnsupportedFeature: The adapter lacks what an address or source needs.
            TopologyError: Something is missing or differs.
        """
        async with self._declaring:
            new_addresses = tuple(a for a in dict.fromkeys(addresses) if a not in self._declared)
            new_sources = tuple(s for s in dict.fromkeys(sources) if s not in self._declared)
            if not new_addresses and not new_sources:
                return
            for address in (*new_addresses, *(s.address for s in new_sources)):
                self._check(address)
            await self.adapter.declare(Topology(new_addresses, new_sources))
            self._declared.update(new_addresses, new_sources, (s.address for s in new_sources))

    def _check(self, address: Address) -> None:
        capabilities, name = self.adapter.capabilities, self.adapter.name
        if address.kind is Kind.TOPIC and not capabilities.groups:
            raise UnsupportedFeature(name, "groups", f"{address} cannot be a topic there")
        if is_pattern(address.name) and not capabilities.patterns:
            raise UnsupportedFeature(name, "patterns", f"subscribe to each topic of {address.name!r} instead")
        if address.keyed and capabilities.order != "key":
            raise UnsupportedFeature(name, "order=key", f"{address} cannot be ordered by key there")
        if address.kind is Kind.REQUEST and capabilities.requests == "none":
            raise UnsupportedFeature(name, "requests")

    async def flush(self) -> None:
        """Return when all that was published is confirmed or refused."""
        await self.publisher.aclose()

    async def aclose(self) -> None:
        """Close it: answers first, then what is being published, then the adapter."""
        try:
            await self.requester.aclose()
            await self.publisher.aclose()
        finally:
            await self.adapter.aclose()


class Connections:
    """All connections of one bus.

    Args:
        settings: Which broker is for which channel.
        config: What each adapter is told.
        middleware: Called around each publish.
        on_crash: Called when a background part fails, which is a bug.
    """

    def __init__(
        self,
        settings: Settings,
        config: AdapterConfig,
        middleware: Sequence[PublishMiddleware],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._config = config
        self._middleware = middleware
        self._on_crash = on_crash
        self._open: dict[BusURL, Connection] = {}
        self._opening = asyncio.Lock()
        self._routed: dict[str, Connection] = {}

    def __iter__(self) -> Any:
        return iter(self._open.values())

    def url_for(self, channel: str) -> BusURL:
        """Return the URL of the broker that has the channel."""
        for pattern, url in self._settings.routes:
            if match_name(pattern, channel) or pattern == channel:
                return url
        return self._settings.url

    async def get(self, channel: str) -> Connection:
        """Return the connection for a channel, opening it if it is the first.

        Raises:
            BrokerUnavailable: The broker cannot be reached.
        """
        found = self._routed.get(channel)
        if found is None:
            found = self._routed[channel] = await self._connect(self.url_for(channel))
        return found

    async def open_default(self) -> Connection:
        """Open the connection for channels without a route, so that a broken URL shows at start."""
        return await self._connect(self._settings.url)

    async def _connect(self, url: BusURL) -> Connection:
        async with self._opening:
            if url in self._open:
                return self._open[url]
            adapter = adapter_class(url)(url, self._config)
            try:
                async with asyncio.timeout(self._config.connect_timeout + 5):
                    await adapter.open()
            except TimeoutError as exc:
                await adapter.aclose()
                raise BrokerUnavailable(f"{url} did not answer within {self._config.connect_timeout:g} s") from exc
            except BaseException:
                await adapter.aclose()
                raise
            settings = self._settings
            publisher = Publisher(
                adapter,
                timeout=settings.publish_timeout,
                max_body=settings.max_body,
                clock=self._config.clock,
                middleware=self._middleware,
            )
            prefix = f"{settings.namespace}." if settings.namespace else ""
            requester = Requester(
                adapter,
                publisher,
                f"{prefix}replies.{settings.service_word}.{self._config.instance}",
                lease=settings.lease,
                on_crash=self._on_crash,
            )
            connection = self._open[url] = Connection(adapter, publisher, requester)
            return connection

    async def aclose(self) -> None:
        """Close all; the first error is raised when all are closed."""
        errors = [
            error
            for error in await asyncio.gather(*(c.aclose() for c in self._open.values()), return_exceptions=True)
            if error
        ]
        self._open.clear()
        self._routed.clear()
        if errors:
            raise errors[0]
