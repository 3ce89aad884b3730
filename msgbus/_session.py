"""What exists while a bus is open: its connections, its idempotency store, its running handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgbus._channel import Channel
from msgbus._chunks import chunks
from msgbus._codec import bounded
from msgbus._config import Settings
from msgbus._connections import Connection, Connections
from msgbus._consumers import check_registration, drain_all, start_receiver
from msgbus._dispatch import ConsumeMiddleware
from msgbus._encoder import Encoder
from msgbus._guards import Guards
from msgbus._names import check_name
from msgbus._publisher import PublishMiddleware
from msgbus._receiver import Receiver
from msgbus._registration import Registration, label_of
from msgbus._requests import remote_error
from msgbus._time import Clock
from msgbus.adapter import AdapterConfig, Address, Health, Kind, Outgoing, Received, Source
from msgbus.errors import (
    ChannelError,
    DecodeError,
    EncodeError,
    HandlerError,
    MsgbusError,
)

__all__ = ["Gathered", "HealthReport", "Session"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Gathered(Generic[R]):
    """What came back from `Bus.gather`.

    Attributes:
        replies: The answers, in the order in which they came.
        errors: Why other responders have none: `RemoteError` (its handler failed) or `DecodeError`.
    """

    replies: list[R]
    errors: list[MsgbusError]


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Whether a bus works.

    Attributes:
        ok: True when every broker and the store are reachable and every running subscription is receiving.
        brokers: Each broker's health, by its URL (credentials masked).
        subscriptions: Whether each running subscription is receiving, by ``channel`` or ``channel@group``.
        store: The health of the idempotency store and of the databases of `Idempotency(within=)`; None when no handler
            needs any.
    """

    ok: bool
    brokers: Mapping[str, Health]
    subscriptions: Mapping[str, bool]
    store: Health | None = None


class Session:
    """One opening of a bus.

    Args:
        settings: The bus's settings.
        clock: The bus's clock.
        instance: Unique to this session.
        publish_middleware: Around each publish.
        consume_middleware: Around each handler call.
        on_failure: Called with each exception that a message failed with.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        instance: str,
        *,
        publish_middleware: Sequence[PublishMiddleware],
        consume_middleware: Sequence[ConsumeMiddleware],
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.settings = settings
        self.encode = Encoder(settings.service, clock)
        self.crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.receivers: dict[str, Receiver] = {}
        self._clock = clock
        self._config = AdapterConfig(
            clock=clock, service=settings.service, instance=instance, provision=settings.topology
        )
        self._consume_middleware = consume_middleware
        self._on_failure = on_failure
        self._connections = Connections(settings, self._config, publish_middleware, self._crash)
        self._targets: dict[Channel[Any], tuple[Connection, Address]] = {}
        self.guards = Guards(settings, self._config)

    async def open(self, registrations: Sequence[Registration]) -> None:
        """Connect, and declare what the handlers consume."""
        await self._connections.open_default()
        sources: dict[Connection, list[Source]] = {}
        for registration in registrations:
            connection = await self._connections.get(registration.channel.name)
            check_registration(registration, connection, self.settings)
            sources.setdefault(connection, []).append(registration.source(self.settings.namespace))
        for connection, wanted in sources.items():
            await connection.declare(sources=wanted)
        await self.guards.open(registrations)

    async def start(self, registrations: Sequence[Registration], *, only: frozenset[str]) -> None:
        """Start the handlers that do not run yet."""
        if unknown := only - {r.channel.name for r in registrations}:
            raise HandlerError(f"no handler is registered for {', '.join(sorted(unknown))}")
        for registration in registrations:
            if registration.label in self.receivers or (only and registration.channel.name not in only):
                continue
            self.receivers[registration.label] = await start_receiver(
                registration,
                await self._connections.get(registration.channel.name),
                self.settings,
                clock=self._clock,
                guard=self.guards.maker(registration),
                middleware=self._consume_middleware,
                on_failure=self._on_failure,
                on_crash=self._crash,
            )

    async def drain(self, timeout: float) -> None:
        """Stop the handlers."""
        receivers = list(self.receivers.values())
        await drain_all(receivers, timeout)
        self.receivers.clear()

    def hurry(self) -> None:
        """Make a drain that is under way cancel the handlers now."""
        for receiver in self.receivers.values():
            receiver.hurry()

    async def flush(self) -> None:
        """Return when all that was published is confirmed or refused."""
        for connection in self._connections:
            await connection.flush()

    async def aclose(self) -> None:
        """Drain, and close everything, even when some of it fails."""
        try:
            await self.drain(self.settings.drain_timeout)
        finally:
            await self.guards.aclose()
            await self._connections.aclose()
            self.crashed.cancel()

    # -- publishing ---------------------------------------------------------------------------------------------

    async def publish(self, channel: Channel[Any], payload: Any, options: Mapping[str, Any]) -> None:
        """Publish one message."""
        connection, address = self._targets.get(channel) or await self._target(channel)
        await connection.publisher.publish(self.encode(channel, address, payload, **options))

    async def publish_many(
        self, channel: Channel[Any], payloads: Iterable[Any] | AsyncIterable[Any], options: Mapping[str, Any]
    ) -> int:
        """Publish many messages; return how many."""
        connection, address = self._targets.get(channel) or await self._target(channel)

        def encoded(payload: Any) -> Outgoing | MsgbusError:
            try:
                return self.encode(channel, address, payload, **options)
            except EncodeError as exc:
                return exc

        publisher = connection.publisher
        batches = chunks(payloads, publisher.max_batch)
        return await publisher.publish_many([encoded(payload) for payload in batch] async for batch in batches)

    async def request(self, channel: Any, payload: Any, timeout: float, options: Mapping[str, Any]) -> Any:
        """Send a request; return the decoded answer."""
        connection, address = self._targets.get(channel) or await self._target(channel)
        outgoing = self._request(channel, address, payload, timeout, options)
        answer = await connection.requester.request(outgoing, timeout)
        try:
            return self._decode_reply(channel)(answer.body)
        except DecodeError as exc:
            raise DecodeError(f"the answer of {channel!r} does not fit: {exc}") from exc

    async def gather(
        self, channel: Any, payload: Any, timeout: float, quorum: int | None, options: Mapping[str, Any]
    ) -> Gathered[Any]:
        """Send a request to every group; return the decoded answers."""
        connection, address = self._targets.get(channel) or await self._target(channel)
        outgoing = self._request(channel, address, payload, timeout, options)
        gathered: Gathered[Any] = Gathered([], [])
        decode = self._decode_reply(channel)

        def is_enough(answer: Received) -> bool:
            if (error := remote_error(answer)) is not None:
                gathered.errors.append(error)
                return False
            try:
                gathered.replies.append(decode(answer.body))
            except DecodeError as exc:
                gathered.errors.append(exc)
            return len(gathered.replies) == quorum

        await connection.requester.gather(outgoing, timeout, is_enough)
        return gathered

    def _decode_reply(self, channel: Any) -> Callable[[bytes], Any]:
        return bounded(channel.decode_reply, self.settings.max_body)

    def _request(
        self, channel: Any, address: Address, payload: Any, timeout: float, options: Mapping[str, Any]
    ) -> Outgoing:
        if options and (refused := {"delay", "expires", "correlation_id"} & options.keys()):
            raise EncodeError(f"a request takes no {min(refused)}=: it is answered within its timeout or not")
        return self.encode(channel, address, payload, expires=timeout, **options)

    async def _target(self, channel: Channel[Any]) -> tuple[Connection, Address]:
        connection = await self._connections.get(channel.name)
        address = channel.address(self.settings.namespace)
        await connection.declare(addresses=[address])
        target = self._targets[channel] = (connection, address)
        return target

    # -- looking after it ---------------------------------------------------------------------------------------

    async def source(self, channel: Channel[Any] | str, group: str | None) -> tuple[Connection, Source]:
        """Return where a subscription is."""
        if isinstance(channel, str):
            name = check_name(channel, "channel", pattern=group is not None)
            kind = Kind.TOPIC if group is not None else Kind.QUEUE
            prefixed = f"{self.settings.namespace}.{name}" if self.settings.namespace else name
            return await self._connections.get(name), Source(Address(kind, prefixed), group or "")
        if (channel.kind is Kind.TOPIC) != (group is not None):
            raise ChannelError(f"{channel!r} {'needs' if group is None else 'has no'} group=")
        return await self._connections.get(channel.name), Source(channel.address(self.settings.namespace), group or "")

    def receiver(self, channel: Channel[Any], group: str | None) -> Receiver:
        """Return what consumes a subscription in this process."""
        label = label_of(channel, group)
        if (receiver := self.receivers.get(label)) is None:
            running = ", ".join(self.receivers) or "none"
            raise ChannelError(f"no handler of {label!r} is running here; running: {running}")
        return receiver

    def health(self) -> HealthReport:
        """Return whether all works."""
        brokers = {str(c.adapter.url): c.adapter.health for c in self._connections}
        subscriptions = {label: receiver.healthy for label, receiver in self.receivers.items()}
        ok = all(health.ok for health in brokers.values()) and all(subscriptions.values())
        store = self.guards.health
        ok = ok and (store is None or store.ok) and not self.crashed.done()
        return HealthReport(ok, brokers, subscriptions, store)

    async def raw(self, channel: Channel[Any] | None) -> Any:
        """Return the client library's own connection."""
        if channel is None:
            return (await self._connections.open_default()).adapter.raw
        return (await self._connections.get(channel.name)).adapter.raw

    def _crash(self, error: BaseException) -> None:
        if not self.crashed.done():
            self.crashed.set_exception(error)
            self.crashed.exception()  # seen: whoever waits for it raises it, and health tells
