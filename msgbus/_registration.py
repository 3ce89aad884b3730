"""What ``bus.on`` was told: which handlers consume which source, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from msgbus._backoff import Retry
from msgbus._channel import Answered, Channel, Queue, Topic
from msgbus._idempotency import Idempotency
from msgbus._names import check_name
from msgbus._plan import Plan, compile_plan
from msgbus._time import Duration, seconds
from msgbus.adapter import Kind, Source, Start
from msgbus.errors import ChannelError, HandlerError

__all__ = ["ConsumeOptions", "Registration", "Registrations", "label_of"]

_QUEUE_RETRY = Retry()
_REQUEST_RETRY = Retry(attempts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumeOptions:
    """The options of ``bus.on``, checked. None stands for the bus's own setting."""

    concurrency: int | None = None
    prefetch: int | None = None
    retry: Retry = _QUEUE_RETRY
    timeout: float | None = None
    batch: int = 0
    batch_wait: float = 0.05
    idempotent: Idempotency | None = None
    unknown: Literal["dead-letter", "ignore"] = "dead-letter"
    park: bool = False
    start: Start | None = None


@dataclass(slots=True)
class Registration:
    """One subscription of the application.

    Attributes:
        channel: What it consumes.
        group: The consumer group; empty but for topics.
        options: How.
        plans: Its handlers.
    """

    channel: Channel[Any]
    group: str
    options: ConsumeOptions
    plans: list[Plan] = field(default_factory=list)

    def source(self, namespace: str) -> Source:
        """Return the source at a broker."""
        return Source(self.channel.address(namespace), self.group)

    @property
    def label(self) -> str:
        """How people are told which subscription is meant."""
        return label_of(self.channel, self.group)


def label_of(channel: Channel[Any], group: str | None) -> str:
    """Return how people are told which subscription is meant."""
    return f"{channel.name}@{group}" if group else channel.name


class Registrations:
    """All subscriptions of one bus, each (channel, group) once."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str, str], Registration] = {}

    def __iter__(self) -> Any:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def add(self, channel: Channel[Any], group: str, options: ConsumeOptions, handler: Callable[..., Any]) -> None:
        """Register *handler*.

        Raises:
            HandlerError: Its signature does not fit, or another handler already takes the same messages.
        """
        plan = compile_plan(handler, channel, batch=options.batch > 0)
        _check_transaction(plan, options)
        key = (channel.kind, channel.name, group)
        found = self._all.get(key)
        if found is None:
            self._all[key] = Registration(channel, group, options, [plan])
            return
        _check_joins(found, channel, options, plan)
        found.plans.append(plan)

    def find(self, channel: Channel[Any], group: str) -> Registration | None:
        """Return the subscription of *group* on *channel*, if it was registered."""
        return self._all.get((channel.kind, channel.name, group))


def check_group(channel: Channel[Any], group: str | None) -> str:
    """Return the group for a subscription on *channel*: topics need one, nothing else has one.

    Raises:
        HandlerError: There is one too many or too few.
    """
    if not isinstance(channel, Queue | Topic | Answered):
        raise HandlerError(f"bus.on takes a Queue, a Topic, a RequestReply or a ScatterGather, got {channel!r}")
    if channel.kind is Kind.TOPIC:
        if group is None:
            raise HandlerError(f"{channel!r} needs group=: every group gets each message, its members share them")
        return check_name(group, "group=")
    if group is not None:
        raise HandlerError(f"group= is for topics; {channel!r} has one subscription that all consumers share")
    return ""


def make_options(
    channel: Channel[Any],
    *,
    concurrency: int | None,
    prefetch: int | None,
    retry: Retry | None,
    timeout: Duration | None,
    batch: int,
    batch_wait: Duration,
    idempotent: bool | Idempotency,
    unknown: Literal["dead-letter", "ignore"],
    park: bool,
    start: Start | None,
) -> ConsumeOptions:
    """Check the options of ``bus.on``.

    Raises:
        HandlerError: One does not fit; the text names it and what it takes.
    """
    for name, value, least in (("concurrency", concurrency, 1), ("prefetch", prefetch, 1), ("batch", batch, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise HandlerError(f"{name}= takes a whole number from {least}, got {value!r}")
    if batch and isinstance(channel, Answered):
        raise HandlerError(f"{channel!r}: requests are answered one by one; batch= is for queues and topics")
    if unknown not in ("dead-letter", "ignore"):
        raise HandlerError(f"unknown= is 'dead-letter' or 'ignore', got {unknown!r}")
    if park and not channel.keyed:
        raise HandlerError(f"park= holds back a dead letter's key; {channel!r} has no key")
    if retry is not None and not isinstance(retry, Retry):
        raise HandlerError(f"retry= takes a Retry(attempts=…), got {retry!r}")
    try:
        return ConsumeOptions(
            concurrency=concurrency if concurrency is not None or not batch else 1,
            prefetch=prefetch,
            retry=retry or (_REQUEST_RETRY if isinstance(channel, Answered) else _QUEUE_RETRY),
            timeout=None if timeout is None else seconds(timeout, "timeout="),
            batch=batch,
            batch_wait=seconds(batch_wait, "batch_wait="),
            idempotent=_idempotency(idempotent),
            unknown=unknown,
            park=park,
            start=start,
        )
    except (ValueError, TypeError) as exc:
        raise HandlerError(str(exc)) from exc


def _idempotency(value: bool | Idempotency) -> Idempotency | None:
    if isinstance(value, Idempotency):
        return value
    if value is True:
        return Idempotency()
    if value in (False, None):
        return None
    raise HandlerError(f"idempotent= takes True or Idempotency(…), got {value!r}")


def _check_transaction(plan: Plan, options: ConsumeOptions) -> None:
    within = options.idempotent is not None and options.idempotent.within is not None
    if within and plan.transaction is None and not plan.takes_deliveries:
        raise HandlerError(
            f"{plan.name} does not take the connection of Idempotency(within=), so nothing it does is in its "
            "transaction: add a parameter that is annotated with the connection's (or session's) class"
        )
    if plan.transaction is None:
        return
    shown = plan.transaction.__name__
    if not within:
        raise HandlerError(f"{plan.name} takes a {shown}: say whose, with idempotent=Idempotency(within=…)")
    if inspect.iscoroutinefunction(plan.transaction.commit) and not plan.is_async:
        raise HandlerError(f"{plan.name} is a plain function, but a {shown} is for 'async def'")


def _check_joins(found: Registration, channel: Channel[Any], options: ConsumeOptions, plan: Plan) -> None:
    if channel.types != found.channel.types or channel.keyed != found.channel.keyed:
        raise ChannelError(f"{channel!r} is defined twice, with different payload types or keys")
    for other in found.plans:
        if shared := set(other.types) & set(plan.types):
            names = ", ".join(sorted(channel.type_names[t] for t in shared))
            raise HandlerError(
                f"{plan.name} cannot handle {names} of {found.label!r}: {other.name} already does. One subscription "
                "has one handler per message type; give a topic's second handler another group="
            )
    if options != found.options:
        raise HandlerError(f"{plan.name} and {found.plans[0].name} share {found.label!r} but have different options")
    if options.batch:
        raise HandlerError(f"{plan.name}: a batch handler takes all messages of {found.label!r} alone")
