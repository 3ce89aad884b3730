"""The bus: what applications hold in their hands."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, cast, overload

from msgbus._backoff import Retry
from msgbus._channel import Channel, Queue, RequestReply, ScatterGather, Topic
from msgbus._config import load_settings
from msgbus._dispatch import ConsumeMiddleware
from msgbus._idempotency import Idempotency
from msgbus._message import new_id
from msgbus._names import is_pattern
from msgbus._operations import Operations
from msgbus._publisher import PublishMiddleware
from msgbus._registration import Registration, Registrations, check_group, make_options
from msgbus._session import Gathered, Session
from msgbus._time import Clock, Duration, SystemClock, seconds
from msgbus._typing import (
    BatchRegistrar,
    HandlerOptions,
    ManyOptions,
    PublishOptions,
    Registrar,
    ReplyRegistrar,
    SubscriptionOptions,
)
from msgbus._url import BusURL
from msgbus.adapter import Provision, Start
from msgbus.errors import ChannelError, ClosedError

if TYPE_CHECKING:
    from msgbus._sync import SyncBus

__all__ = ["Bus"]

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")
_log = logging.getLogger("msgbus")
_NOT_OPEN = "the bus is not open: use it inside 'async with bus:' (in code without asyncio: 'with bus.sync:')"


class Bus(Operations):
    """Publishes to channels, and runs the handlers registered with `on`.

    Everything not given here is read from the environment when the bus is opened: ``MSGBUS_URL``,
    ``MSGBUS_NAMESPACE`` and so on (see the configuration reference).

    Args:
        url: The broker's URL; ``sqlite:///msgbus.db`` when neither this nor ``MSGBUS_URL`` is set.
        routes: Other brokers for some channels, from channel pattern to URL.
        namespace: Put before all names, so that environments can share a broker.
        service: The application's name, the ``ce-source`` of its messages.
        concurrency: Messages handled at once by a subscription that does not say otherwise.
        prefetch: Messages held at most by such a subscription; 0 chooses from its concurrency.
        lease: Seconds a received message stays ours between two heartbeats.
        max_body: The largest body in bytes that is published or handled; 64 MiB, or what the broker takes.
        publish_timeout: Seconds until an unconfirmed publish is given up.
        drain_timeout: Seconds that running handlers get to finish at shutdown.
        idempotency_url: The idempotency store; the embedded brokers bring their own.
        topology: Whether the application may create what it uses: create, verify or skip.
        publish_middleware: ``async def mw(message, call_next)`` around each publish, outermost first.
        consume_middleware: ``async def mw(delivery, call_next)`` around each handler call, outermost first (batch
            handlers are called without).
        clock: For tests.
    """

    def __init__(
        self,
        url: str | BusURL | None = None,
        *,
        routes: Mapping[str, str] | None = None,
        namespace: str | None = None,
        service: str | None = None,
        concurrency: int | None = None,
        prefetch: int | None = None,
        lease: Duration | None = None,
        max_body: int | None = None,
        publish_timeout: Duration | None = None,
        drain_timeout: Duration | None = None,
        idempotency_url: str | BusURL | None = None,
        topology: Provision | Literal["create", "verify", "skip"] | None = None,
        publish_middleware: Sequence[PublishMiddleware] = (),
        consume_middleware: Sequence[ConsumeMiddleware] = (),
        clock: Clock | None = None,
    ) -> None:
        self._overrides: dict[str, Any] = {
            "url": None if url is None else BusURL.parse(url),
            "routes": None if routes is None else dict(routes),
            "namespace": namespace,
            "service": service,
            "concurrency": concurrency,
            "prefetch": prefetch,
            "lease": None if lease is None else seconds(lease, "lease="),
            "max_body": max_body,
            "publish_timeout": None if publish_timeout is None else seconds(publish_timeout, "publish_timeout="),
            "drain_timeout": None if drain_timeout is None else seconds(drain_timeout, "drain_timeout="),
            "idempotency_url": None if idempotency_url is None else BusURL.parse(idempotency_url),
            "topology": topology,
        }
        self._publish_middleware = tuple(publish_middleware)
        self._consume_middleware = tuple(consume_middleware)
        self._clock: Clock = clock or SystemClock()
        self._registrations = Registrations()
        self._session: Session | None = None
        self._sync: SyncBus | None = None

    # -- handlers -----------------------------------------------------------------------------------------------

    @overload
    def on(
        self, channel: ScatterGather[Q, R], *, group: str, **options: Unpack[HandlerOptions]
    ) -> ReplyRegistrar[Q, R]: ...
    @overload
    def on(self, channel: RequestReply[Q, R], **options: Unpack[HandlerOptions]) -> ReplyRegistrar[Q, R]: ...
    @overload
    def on(
        self,
        channel: Queue[T] | Topic[T],
        *,
        batch: int,
        batch_wait: Duration = ...,
        **options: Unpack[SubscriptionOptions],
    ) -> BatchRegistrar[T]: ...
    @overload
    def on(self, channel: Queue[T] | Topic[T], **options: Unpack[SubscriptionOptions]) -> Registrar[T]: ...
    def on(
        self,
        channel: Channel[Any],
        *,
        group: str | None = None,
        concurrency: int | None = None,
        prefetch: int | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        batch: int = 0,
        batch_wait: Duration = 0.05,
        idempotent: bool | Idempotency = False,
        unknown: Literal["dead-letter", "ignore"] = "dead-letter",
        park: bool = False,
        start: Start | None = None,
    ) -> Any:
        """Register the decorated function, ``async def`` or plain ``def``, as the handler of *channel*.

        The function stays as it is and can be called directly. It takes the payload, and if it likes a `Delivery`
        and a `Message`, by annotation. Returning settles the message; raising retries it by the policy;
        `Reject` dead-letters it, `RetryAfter` says when to try again.

        Args:
            channel: A Queue, Topic, RequestReply or ScatterGather.
            group: On topics: the consumer group. Every group gets each message, its members share them.
            concurrency: Handlers that run at once in this process.
            prefetch: Messages held at most in this process.
            retry: When a failed message is handled again; `Retry()` for queues and topics, one attempt for requests.
            timeout: Seconds one call may take; then it is cancelled, and that attempt has failed. A plain function
                cannot be cancelled: its thread goes on.
            batch: The handler takes a list of up to so many payloads (or deliveries).
            batch_wait: Seconds a batch waits to fill up.
            idempotent: Handle duplicates once; True for the defaults.
            unknown: What to do with messages of a type that no handler takes.
            park: On channels with a key: later messages of a dead letter's key wait until it is replayed or dropped.
            start: Where the group begins, on brokers with replay: "earliest", "latest", a datetime or a position.

        Raises:
            HandlerError: The function's signature fits no payload of the channel, another handler already takes
                the same messages, or an option does not fit.
        """
        options = make_options(
            channel,
            concurrency=concurrency,
            prefetch=prefetch,
            retry=retry,
            timeout=timeout,
            batch=batch,
            batch_wait=batch_wait,
            idempotent=idempotent,
            unknown=unknown,
            park=park,
            start=start,
        )
        checked_group = check_group(channel, group)

        def register(handler: Callable[..., Any]) -> Callable[..., Any]:
            self._registrations.add(channel, checked_group, options, handler)
            return handler

        return register

    @property
    def subscriptions(self) -> tuple[Registration, ...]:
        """What was registered with `on`."""
        return tuple(self._registrations)

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect and declare what the handlers consume; no handler is started.

        Raises:
            ConfigError: A setting is wrong.
            UnsupportedFeature: The broker cannot do what a channel or handler needs.
            BrokerUnavailable: It cannot be reached.
        """
        await self._enter(self._clock, self._overrides)
        return self

    async def _enter(
        self, clock: Clock, overrides: Mapping[str, Any], on_failure: Callable[[BaseException], None] | None = None
    ) -> Session:
        if self._session is not None:
            raise ClosedError("the bus is open already; one 'async with bus:' at a time")
        settings, chosen = load_settings(**overrides)
        if not chosen:
            _log.info("MSGBUS_URL is not set: using %s", settings.url)
        session = Session(
            settings,
            clock,
            new_id()[:12],
            publish_middleware=self._publish_middleware,
            consume_middleware=self._consume_middleware,
            on_failure=on_failure,
        )
        self._session = session
        try:
            await session.open(self.subscriptions)
        except BaseException:
            self._session = None
            await session.aclose()
            raise
        return session

    async def __aexit__(self, *_: object) -> None:
        """Drain the handlers and close."""
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()

    async def start(self, *, only: Iterable[str] = ()) -> None:
        """Start the handlers in the background of an open bus.

        Args:
            only: Names of channels; handlers of others are not started.
        """
        await self._open.start(self.subscriptions, only=frozenset(only))

    async def drain(self, timeout: Duration | None = None) -> None:
        """Stop the handlers: no more is received, what runs may finish, the rest goes back uncounted.

        Args:
            timeout: Seconds running handlers get before they are cancelled; the bus's ``drain_timeout`` by default.
        """
        session = self._open
        await session.drain(session.settings.drain_timeout if timeout is None else seconds(timeout, "timeout="))

    def hurry(self) -> None:
        """Make a `drain` that is under way cancel the running handlers now."""
        self._open.hurry()

    async def wait(self) -> None:
        """Return never; raise if a background part of the bus fails."""
        await self._open.crashed

    def run(self, *, only: Iterable[str] = ()) -> None:
        """Consume until SIGTERM or SIGINT, then drain and return; a second signal stops at once.

        Args:
            only: Names of channels; handlers of others are not started.
        """
        from msgbus._run import run  # noqa: PLC0415 - only programs that consume need it

        run(self, only=tuple(only))

    def forget_session(self) -> None:
        """Let go of connections without closing them: in a forked child they are the parent's."""
        self._session = None

    @property
    def sync(self) -> SyncBus:
        """The same API for code without asyncio; runs the bus on an event loop in a background thread."""
        if self._sync is None:
            from msgbus._sync import SyncBus  # noqa: PLC0415 - needs a bus to exist

            self._sync = SyncBus(self)
        return self._sync

    # -- publishing ---------------------------------------------------------------------------------------------

    async def send(self, queue: Queue[T], payload: T, **options: Unpack[PublishOptions]) -> None:
        """Send a message to a queue; return once the broker has confirmed it.

        Args:
            queue: Where to.
            payload: What.
            **options: ``key=``, ``delay=``, ``expires=``, ``headers=``, ``id=``, ``correlation_id=`` and ``cause=``;
                see `PublishOptions`.

        Raises:
            EncodeError: The payload or an option does not fit. Nothing was sent.
            PublishError: It was not confirmed; the class tells whether the broker may have it.
            UnsupportedFeature: The broker cannot delay that long.
        """
        _expect(queue, Queue, "send", "use publish for topics and request for request-reply")
        await self._open.publish(queue, payload, options)

    async def publish(self, topic: Topic[T], payload: T, **options: Unpack[PublishOptions]) -> None:
        """Publish a message to every group of a topic; return once the broker has confirmed it.

        Arguments and errors are those of `send`.
        """
        _expect(topic, Topic, "publish", "use send for queues and request for request-reply")
        await self._open.publish(topic, payload, options)

    async def send_many(
        self, queue: Queue[T], payloads: Iterable[T] | AsyncIterable[T], **options: Unpack[ManyOptions]
    ) -> int:
        """Send many messages, pipelined; return how many, once the broker has confirmed all.

        Args:
            queue: Where to.
            payloads: What; taken as fast as they are confirmed.
            **options: For each of the messages; see `ManyOptions`.

        Raises:
            PublishFailed: Some were not confirmed (or do not fit the queue); ``failures`` says which and why. All
                the others were.
        """
        _expect(queue, Queue, "send_many", "use publish_many for topics")
        return await self._open.publish_many(queue, payloads, options)

    async def publish_many(
        self, topic: Topic[T], payloads: Iterable[T] | AsyncIterable[T], **options: Unpack[ManyOptions]
    ) -> int:
        """Publish many messages to a topic; everything else as `send_many`."""
        _expect(topic, Topic, "publish_many", "use send_many for queues")
        return await self._open.publish_many(topic, payloads, options)

    async def request(
        self, channel: RequestReply[Q, R], payload: Q, *, timeout: Duration = 10.0, **options: Unpack[PublishOptions]
    ) -> R:
        """Send a request and return its answer.

        Args:
            channel: Whom to ask.
            payload: What.
            timeout: Seconds to wait. The request expires then: it is not handled any later.
            **options: As for `send`, but ``delay=``, ``expires=`` and ``correlation_id=``.

        Raises:
            RequestTimeout: There was no answer in time.
            RemoteError: The responder's handler failed; carries its exception's type and text.
            NoResponders: Nobody answers there (where the broker can tell).
            DecodeError: The answer does not fit the channel.
        """
        _expect(channel, RequestReply, "request", "use send for queues and publish for topics")
        return cast("R", await self._open.request(channel, payload, seconds(timeout, "timeout="), options))

    async def gather(
        self,
        channel: ScatterGather[Q, R],
        payload: Q,
        *,
        timeout: Duration = 10.0,
        quorum: int | None = None,
        **options: Unpack[PublishOptions],
    ) -> Gathered[R]:
        """Send a request to every group of a channel and gather their answers.

        Args:
            channel: Whom to ask.
            payload: What.
            timeout: Seconds to wait. The request expires then: it is not handled any later.
            quorum: Return when so many have answered well; by default all that answer in time are waited for.
            **options: As for `send`, but ``delay=``, ``expires=`` and ``correlation_id=``.

        Returns:
            What came in time, possibly fewer than *quorum*. A group whose first worker died may answer a second time.

        Raises:
            PublishError: The request was not sent.
        """
        _expect(channel, ScatterGather, "gather", "use request for request-reply")
        if quorum is not None and quorum < 1:
            raise ValueError(f"quorum= takes a whole number from 1, got {quorum!r}")
        return await self._open.gather(channel, payload, seconds(timeout, "timeout="), quorum, options)

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise ClosedError(_NOT_OPEN)
        return self._session


def _expect(channel: object, kind: type[Channel[Any]], verb: str, hint: str) -> None:
    if not isinstance(channel, kind):
        raise ChannelError(f"bus.{verb} takes a {kind.__name__}, got {channel!r}; {hint}")
    if is_pattern(channel.name):
        raise ChannelError(f"{channel!r} is a pattern; nothing can be published to it")
