"""From a received message to its outcome: choose the handler, decode, guard, call, and judge what it raised."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from msgbus._backoff import Retry
from msgbus._channel import Channel
from msgbus._codec import Decode, bounded
from msgbus._delivery import Controls, Delivery
from msgbus._failure import Crashed, Expired, Failures, UnknownType, attempt_of
from msgbus._idempotency import Guard, Undone
from msgbus._message import ATTEMPTS, EXPIRES, TYPE, parse_time
from msgbus._plan import InThread, Plan
from msgbus._time import Clock
from msgbus._url import scrub
from msgbus.adapter import Ack, Capabilities, DeadLetter, Nack, Outcome, Received, Source
from msgbus.errors import DecodeError, PayloadMismatch
from msgbus.store import Done, Granted, InProgress, Verdict

__all__ = ["ConsumeMiddleware", "Dispatcher", "Responder", "Rules"]

_log = logging.getLogger("msgbus")

ConsumeMiddleware = Callable[[Delivery[Any], Callable[[Delivery[Any]], Awaitable[Any]]], Awaitable[Any]]
_GIVEN_BACK_SLACK = 20
"""Where the broker's count also grows when messages are given back untried, a message is only taken for one that
kills its consumers when it was handed out this much more often than its policy allows."""
_IN_PROGRESS_WAIT = 1.0
"""The pause in seconds, at first, before a duplicate of a message that is being handled asks again."""
_DOUBLINGS = 6
"""How often that pause doubles, at most: with twenty tries it adds up to a quarter of an hour."""


class Responder(Protocol):
    """Answers requests."""

    def encode(self, result: Any) -> bytes:
        """Return the body of the answer."""
        ...

    def answer(self, received: Received, body: bytes) -> Outcome | None:
        """Send the answer; return the request's outcome, or None when it is settled once the answer is out."""
        ...

    def fail(self, received: Received, outcome: DeadLetter, error: BaseException) -> Outcome | None:
        """Tell the caller that the request failed for good; return the request's outcome, or None as above."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one subscription's messages are handled, from ``bus.on``'s arguments and the settings."""

    retry: Retry
    max_body: int
    unknown: Literal["dead-letter", "ignore"] = "dead-letter"
    park: bool = False


@dataclass(slots=True)
class _Route:
    decode: Decode
    call: Callable[[Delivery[Any]], Awaitable[Any]]
    direct: Callable[[Any], Awaitable[Any]] | None


class Dispatcher:
    """Handles the messages of one subscription, one by one."""

    def __init__(
        self,
        source: Source,
        channel: Channel[Any],
        plans: Sequence[Plan],
        rules: Rules,
        *,
        namespace: str,
        capabilities: Capabilities,
        clock: Clock,
        in_thread: InThread,
        controls: Controls,
        middleware: Sequence[ConsumeMiddleware] = (),
        guard: Guard | None = None,
        responder: Responder | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.failures = Failures(source, channel.name, rules.retry, park=rules.park, clock=clock)
        self._source = source
        self._channel = channel
        self._rules = rules
        self._prefix = f"{namespace}." if namespace else ""
        self._clock = clock
        self._controls = controls
        self._guard = guard
        self._responder = responder
        self._on_failure = on_failure
        slack = 0 if capabilities.delivery_count == "exact" else _GIVEN_BACK_SLACK
        self.limit = rules.retry.attempts + slack
        plain = guard is None and not middleware
        self._routes = {
            name: _route(bounded(channel.decoders[name], rules.max_body), plan, in_thread, middleware, plain)
            for plan in plans
            for name in (channel.type_names[kind] for kind in plan.types)
        }
        self._only = next(iter(self._routes.values())) if len(channel.types) == 1 else None
        self.decoder = self._only.decode if self._only else None
        """Decodes any message's body, where the channel has one type."""

    async def handle(self, received: Received) -> Outcome | None:
        """Handle one message; return its outcome, or None when it is settled in another way."""
        attempt = 1
        if not received.plain:
            headers = received.headers
            if received.deliveries > 1 or ATTEMPTS in headers:
                attempt = attempt_of(received)
                if attempt > self.limit:
                    return self.crashed(received, attempt)
            if EXPIRES in headers and (outcome := self.expired(received, attempt)):
                return outcome
        try:
            route = self._only or self._route(received.headers)
            payload = route.decode(received.body)
        except DecodeError as exc:
            return self.undecodable(received, exc, attempt)
        try:
            if route.direct is None:
                return await self._handle_fully(route, received, payload, attempt)
            result = await route.direct(payload)
            if self._responder is not None:
                return self._responder.answer(received, self._responder.encode(result))
        except Undone as exc:
            return self.undone(received, exc)
        except Exception as exc:  # noqa: BLE001 - whatever a handler raises decides about its message
            return self.failed(received, exc, attempt)
        return Ack(received)

    def decode(self, received: Received) -> Any:
        """Return the payload.

        Raises:
            DecodeError: The body does not fit, or no handler takes the message's type.
        """
        return (self._only or self._route(received.headers)).decode(received.body)

    async def _handle_fully(self, route: _Route, received: Received, payload: Any, attempt: int) -> Outcome | None:
        delivery = self.delivery(received, payload, attempt, self._controls)
        try:
            if self._guard is None:
                body = await self._call(route, delivery)
            else:
                claim = self._guard.claim_for(received, payload)
                async with self._guard.admit((claim,), (received,)) as admission:
                    (verdict,) = admission.verdicts
                    if isinstance(verdict, Granted):
                        delivery.transaction = admission.transaction
                        body = await self._call(route, delivery)
                        done = () if delivery.gave_back else ((claim, body),)
                        await admission.settle(done, failed=() if done else (claim,))
                if not isinstance(verdict, Granted):
                    return self.duplicate(received, verdict, attempt)
        except Exception as exc:
            if not delivery.settled:
                raise
            _log.warning("%r raised after it had settled its message", delivery, exc_info=exc)
            return None
        if delivery.settled:
            return None
        return Ack(received) if self._responder is None else self._responder.answer(received, body or b"")

    async def _call(self, route: _Route, delivery: Delivery[Any]) -> bytes | None:
        result = await route.call(delivery)
        return self._responder.encode(result) if self._responder else None

    def delivery(self, received: Received, payload: Any, attempt: int, controls: Controls) -> Delivery[Any]:
        """Make the delivery that handlers and middleware see."""
        channel = received.channel.removeprefix(self._prefix) or self._channel.name
        return Delivery(
            received, payload, attempt=attempt, channel=channel, group=self._source.group, controls=controls
        )

    def failed(self, received: Received, error: BaseException, attempt: int) -> Outcome | None:
        """Return what becomes of a message whose handler raised *error*."""
        if self._on_failure is not None:
            self._on_failure(error)
        outcome = self.failures.decide(received, error, attempt)
        if isinstance(outcome, DeadLetter):
            return self._bury(outcome, error)
        _log.debug("attempt %d on %s failed, next in %.1f s", attempt, self._source, outcome.delay, exc_info=error)
        return outcome

    def undone(self, received: Received, error: Undone) -> Outcome:
        """Return what becomes of a message that was perhaps handled, which is to be found out."""
        _log.warning("a message of %s comes again: %s", self._source, scrub(str(error)))
        return Nack(received, _IN_PROGRESS_WAIT, counted=False)

    def undecodable(self, received: Received, error: DecodeError, attempt: int) -> Outcome | None:
        """Return what becomes of a message that no handler can be given."""
        if isinstance(error, UnknownType) and self._rules.unknown == "ignore":
            return Ack(received)
        if self._on_failure is not None:
            self._on_failure(error)
        return self._bury(self.failures.dead_letter(received, error, attempt), error)

    def crashed(self, received: Received, attempt: int) -> Outcome | None:
        """Return what becomes of a message that was handed out too often and never settled."""
        error = Crashed(f"handed out {attempt} times without being settled: its consumers died while handling it")
        return self._bury(self.failures.dead_letter(received, error, attempt - 1), error)

    def expired(self, received: Received, attempt: int) -> Outcome | None:
        """Return what becomes of a message whose time is over; None while it is not."""
        if _end(received.headers[EXPIRES]) > self._clock.now():
            return None
        if self._responder is not None:
            return Ack(received)  # the caller has gone
        error = Expired(f"expired at {received.headers[EXPIRES]}")
        return self._bury(self.failures.dead_letter(received, error, attempt - 1), error)

    def duplicate(self, received: Received, verdict: Verdict, attempt: int) -> Outcome | None:
        """Return what becomes of a message that was, or is being, handled already."""
        if isinstance(verdict, InProgress):
            pause = min(max(verdict.remaining, 0.05), in_progress_pause(received.deliveries))
            return Nack(received, pause, counted=False)
        if isinstance(verdict, Done):
            return Ack(received) if self._responder is None else self._responder.answer(received, verdict.reply or b"")
        error = PayloadMismatch("the same idempotency key came with another payload before")
        return self._bury(self.failures.dead_letter(received, error, attempt), error)

    def _bury(self, outcome: DeadLetter, error: BaseException) -> Outcome | None:
        if self._responder is not None:
            return self._responder.fail(outcome.received, outcome, error)
        _log.warning("dead-lettered a message of %s: %s: %s", self._source, type(error).__name__, scrub(str(error)))
        return outcome

    def _route(self, headers: Mapping[str, str]) -> _Route:
        name = headers.get(TYPE)
        route = self._routes.get(name or "")
        if route is None:
            taken = ", ".join(self._routes)
            raise UnknownType(
                f"the message's type is {name!r}; {self._source} takes {taken}"
                if name
                else f"the message has no type (ce-type); {self._source} takes {taken}"
            )
        return route


@lru_cache(maxsize=64)
def _end(expires: str) -> float:
    """Return an expiry in seconds since 1970; those of one moment often come together."""
    time = parse_time(expires)
    return math.inf if time is None else time.timestamp()


def _route(
    decode: Decode, plan: Plan, in_thread: InThread, middleware: Sequence[ConsumeMiddleware], plain: bool
) -> _Route:
    caller = plan.caller(in_thread)

    def innermost(delivery: Delivery[Any]) -> Awaitable[Any]:
        return caller(delivery.payload, delivery)

    call: Callable[[Delivery[Any]], Awaitable[Any]] = innermost
    for layer in reversed(middleware):
        call = _wrap(layer, call)
    direct = plan.direct(in_thread) if plain and not plan.wants_delivery else None
    return _Route(decode, call, direct)


def _wrap(
    layer: ConsumeMiddleware, call_next: Callable[[Delivery[Any]], Awaitable[Any]]
) -> Callable[[Delivery[Any]], Awaitable[Any]]:
    return lambda delivery: layer(delivery, call_next)


def in_progress_pause(deliveries: int) -> float:
    """Return how many seconds a duplicate of a running message waits, at most, before it asks again.

    Some brokers count what is given back untried, too: there it must not come back often.
    """
    return _IN_PROGRESS_WAIT * float(2 ** min(max(deliveries - 1, 0), _DOUBLINGS))
