"""Types that let payloads flow from channel to handler in a type checker's eyes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict, TypeVar, overload

from msgbus._backoff import Retry
from msgbus._delivery import Delivery
from msgbus._idempotency import Idempotency
from msgbus._message import Message
from msgbus._time import Duration
from msgbus.adapter import Start

__all__ = [
    "BatchRegistrar",
    "HandlerOptions",
    "ManyOptions",
    "PublishOptions",
    "Registrar",
    "ReplyRegistrar",
    "SubscriptionOptions",
]

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")
X = TypeVar("X")


class ManyOptions(TypedDict, total=False):
    """What can be said about each message of `Bus.send_many` and `Bus.publish_many`.

    Attributes:
        delay: Seconds (or a timedelta) before it may be received.
        expires: Seconds from now, or the moment, after which it is not handled any more.
        headers: The application's own headers.
        correlation_id: Groups the messages of one conversation.
        cause: The delivery or message that caused this one: its correlation id and trace are passed on.
    """

    delay: Duration
    expires: Duration | datetime | None
    headers: Mapping[str, str] | None
    correlation_id: str | None
    cause: Delivery[Any] | Message | None


class PublishOptions(ManyOptions, total=False):
    """What can be said about one message, besides `ManyOptions`.

    Attributes:
        key: The ordering key, instead of the one the channel takes from the payload.
        id: The message id, instead of a random one. Publishing again with the same id makes a duplicate that
            idempotent handlers (and some brokers) recognise.
    """

    key: str | None
    id: str | None


class HandlerOptions(TypedDict, total=False):
    """The options of `Bus.on` that every kind of handler has."""

    concurrency: int | None
    prefetch: int | None
    retry: Retry | None
    timeout: Duration | None
    idempotent: bool | Idempotency


class SubscriptionOptions(HandlerOptions, total=False):
    """The options of `Bus.on` for queues and topics."""

    group: str | None
    unknown: Literal["dead-letter", "ignore"]
    park: bool
    start: Start | None


class SupportsCommit(Protocol):
    """A connection or session, of whatever library: what `Idempotency(within=)` gives handlers."""

    def commit(self) -> Any:
        """Commit."""
        ...

    def rollback(self) -> Any:
        """Roll back."""
        ...


C = TypeVar("C", bound=SupportsCommit)


class Registrar(Protocol[T]):
    """Takes a handler of payloads of type T, and returns it as it is."""

    @overload
    def __call__(self, handler: Callable[[T], X], /) -> Callable[[T], X]: ...
    @overload
    def __call__(self, handler: Callable[[T, Delivery[T]], X], /) -> Callable[[T, Delivery[T]], X]: ...
    @overload
    def __call__(self, handler: Callable[[Delivery[T]], X], /) -> Callable[[Delivery[T]], X]: ...
    @overload
    def __call__(self, handler: Callable[[T, Message], X], /) -> Callable[[T, Message], X]: ...
    @overload
    def __call__(self, handler: Callable[[T, C], X], /) -> Callable[[T, C], X]: ...
    @overload
    def __call__(self, handler: Callable[[T, C, Delivery[T]], X], /) -> Callable[[T, C, Delivery[T]], X]: ...
    @overload
    def __call__(self, handler: Callable[[T, Delivery[T], C], X], /) -> Callable[[T, Delivery[T], C], X]: ...


class BatchRegistrar(Protocol[T]):
    """Takes a handler of lists of payloads (or deliveries) of type T, and returns it as it is."""

    @overload
    def __call__(self, handler: Callable[[list[T]], X], /) -> Callable[[list[T]], X]: ...
    @overload
    def __call__(self, handler: Callable[[list[Delivery[T]]], X], /) -> Callable[[list[Delivery[T]]], X]: ...
    @overload
    def __call__(self, handler: Callable[[list[T], C], X], /) -> Callable[[list[T], C], X]: ...
    @overload
    def __call__(self, handler: Callable[[list[Delivery[T]], C], X], /) -> Callable[[list[Delivery[T]], C], X]: ...


class ReplyRegistrar(Protocol[Q, R]):
    """Takes a handler from requests of type Q to answers of type R, and returns it as it is."""

    @overload
    def __call__(self, handler: Callable[[Q], Awaitable[R]], /) -> Callable[[Q], Awaitable[R]]: ...
    @overload
    def __call__(self, handler: Callable[[Q], R], /) -> Callable[[Q], R]: ...
    @overload
    def __call__(
        self, handler: Callable[[Q, Delivery[Q]], Awaitable[R]], /
    ) -> Callable[[Q, Delivery[Q]], Awaitable[R]]: ...
    @overload
    def __call__(self, handler: Callable[[Q, Delivery[Q]], R], /) -> Callable[[Q, Delivery[Q]], R]: ...
    @overload
    def __call__(self, handler: Callable[[Q, C], Awaitable[R]], /) -> Callable[[Q, C], Awaitable[R]]: ...
    @overload
    def __call__(self, handler: Callable[[Q, C], R], /) -> Callable[[Q, C], R]: ...
