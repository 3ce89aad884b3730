"""What guards the handlers of an open bus: its idempotency store, and the application's databases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from msgbus._config import Settings
from msgbus._guard import StoreCalls, StoreGuard
from msgbus._idempotency import Guard, Host, Idempotency
from msgbus._inbox import Inbox, InboxGuard
from msgbus._registration import Registration
from msgbus._registry import has_store, store_class
from msgbus._time import Clock
from msgbus._url import BusURL
from msgbus._within import transactions_for
from msgbus.adapter import AdapterConfig, Health
from msgbus.errors import ConfigError, HandlerError, StoreError

__all__ = ["Guards"]

_PURGE_EVERY = 60.0
_PURGE_BATCH = 1_000


class Guards:
    """The store, and an inbox for each database; opened and closed with the bus.

    Attributes:
        calls: The store, if a handler needs it.
    """

    def __init__(self, settings: Settings, config: AdapterConfig) -> None:
        self.calls: StoreCalls | None = None
        self._settings = settings
        self._config = config
        self._inboxes: dict[int, Inbox] = {}
        self._purgers: list[asyncio.Task[None]] = []

    async def open(self, registrations: Sequence[Registration]) -> None:
        """Open what the handlers need.

        Raises:
            ConfigError: There is no store.
            HandlerError: A handler takes another type of connection than it would be given.
        """
        for registration in registrations:
            options = registration.options.idempotent
            if options is None:
                continue
            if options.within is None:
                if self.calls is None:
                    self.calls = await self._open_store()
                continue
            inbox = self._inboxes.get(id(options.within)) or await self._open_inbox(options)
            for plan in registration.plans:
                if plan.transaction is not None and not issubclass(inbox.connection, plan.transaction):
                    raise HandlerError(
                        f"{plan.name} takes a {plan.transaction.__qualname__}, but its Idempotency(within=) gives a "
                        f"{inbox.connection.__qualname__}"
                    )

    def maker(self, registration: Registration) -> Callable[[str, Host], Guard] | None:
        """Return what makes the subscription's guard, or None if it has none."""
        options = registration.options.idempotent
        if options is None:
            return None
        if options.within is not None:
            inbox = self._inboxes[id(options.within)]
            return lambda scope, host: InboxGuard(options, scope, inbox, host)
        calls = self.calls
        assert calls is not None
        return lambda scope, host: StoreGuard(options, scope, calls, host)

    @property
    def health(self) -> Health | None:
        """The first that is not well; None if there is nothing to look at."""
        found = [inbox.health for inbox in self._inboxes.values()]
        if self.calls is not None:
            found.insert(0, self.calls.health)
        return next((health for health in found if not health.ok), found[0] if found else None)

    async def aclose(self) -> None:
        """Close everything."""
        for purger in self._purgers:
            purger.cancel()
        if self._purgers:
            await asyncio.wait(self._purgers)
        if self.calls is not None:
            await self.calls.aclose()
        for inbox in self._inboxes.values():
            await inbox.aclose()

    async def _open_store(self) -> StoreCalls:
        url = self._settings.idempotency_url
        if url is None and has_store(self._settings.url):
            url = self._settings.url
        if url is None:
            raise ConfigError(
                "a handler is idempotent, but there is no store to remember what was handled: set "
                "MSGBUS_IDEMPOTENCY_URL (for example redis://localhost:6379 or sqlite:///handled.db)"
            )
        store = store_class(url)(url, self._config)
        await store.open()
        self._start_purging(store.purge)
        return StoreCalls(store, self._config.clock)

    async def _open_inbox(self, options: Idempotency) -> Inbox:
        transactions = transactions_for(options.within)
        try:
            await transactions.open()
            statements = store_class(BusURL(transactions.dialect)).statements
            if statements is None:
                raise ConfigError(f"Idempotency(within=) does not know the tables of {transactions.dialect} databases")
            inbox = Inbox(transactions, statements, self._config.clock)
            await inbox.open(self._config.provision)
        except BaseException:
            await transactions.aclose()
            raise
        self._inboxes[id(options.within)] = inbox
        self._start_purging(inbox.purge)
        return inbox

    def _start_purging(self, purge: Callable[[int], Awaitable[int]]) -> None:
        self._purgers.append(asyncio.create_task(_purge(purge, self._config.clock)))


async def _purge(purge: Callable[[int], Awaitable[int]], clock: Clock) -> None:
    """Delete expired records in small batches, so that nobody has to."""
    while True:
        try:
            deleted = await purge(_PURGE_BATCH)
        except StoreError:
            deleted = 0  # the store is away; claims report that, and the next round tries again
        if deleted < _PURGE_BATCH:
            await clock.sleep(_PURGE_EVERY)
