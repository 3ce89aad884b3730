"""Wiring: from registrations to running receivers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgbus._channel import Answered
from msgbus._config import Settings
from msgbus._connections import Connection
from msgbus._delivery import Controls
from msgbus._dispatch import ConsumeMiddleware, Dispatcher, Rules
from msgbus._dispatch_batch import BatchDispatcher
from msgbus._failure import attempt_of
from msgbus._idempotency import Guard, Host
from msgbus._limits import Limits
from msgbus._receiver import Receiver
from msgbus._registration import Registration
from msgbus._requests import Replier
from msgbus._time import Clock
from msgbus._worker import Handles
from msgbus.adapter import SubscribeOptions
from msgbus.errors import HandlerError, UnsupportedFeature

__all__ = ["MakeGuard", "check_registration", "start_receiver"]

MakeGuard = Callable[[str, Host], Guard]
"""Makes a subscription's guard from its scope and its receiver."""

_LEAST_PREFETCH = 64
"""Small numbers leave the broker's batches half empty; large ones let one process sit on others' work."""


def limits_for(registration: Registration, settings: Settings) -> Limits:
    """Return how much a subscription does at once."""
    options = registration.options
    concurrency = options.concurrency or settings.concurrency
    needed = concurrency * max(1, options.batch)
    prefetch = options.prefetch or settings.prefetch or max(_LEAST_PREFETCH, 4 * concurrency, 2 * needed)
    if prefetch < needed:
        raise HandlerError(
            f"{registration.label}: prefetch={prefetch} cannot feed concurrency={concurrency}"
            + (f" batches of {options.batch}" if options.batch else "")
            + f"; it must be at least {needed}"
        )
    return Limits(
        concurrency=concurrency,
        prefetch=prefetch,
        lease=settings.lease,
        timeout=options.timeout,
        batch=options.batch,
        batch_wait=options.batch_wait,
    )


def check_registration(registration: Registration, connection: Connection, settings: Settings) -> None:
    """Refuse at start what the adapter cannot do.

    Raises:
        UnsupportedFeature: Names the adapter and the capability.
        HandlerError: The options contradict each other.
    """
    limits_for(registration, settings)
    capabilities, name = connection.adapter.capabilities, connection.adapter.name
    options = registration.options
    if options.park and not capabilities.park_keys:
        raise UnsupportedFeature(name, "park_keys", f"use {registration.label} without park=True")
    if options.start is not None and not capabilities.replay:
        raise UnsupportedFeature(name, "replay", f"use {registration.label} without start=")
    if options.retry.attempts > 1 and capabilities.max_delay <= 0:
        raise UnsupportedFeature(name, "max_delay", f"use {registration.label} with Retry(attempts=1)")


async def start_receiver(
    registration: Registration,
    connection: Connection,
    settings: Settings,
    *,
    clock: Clock,
    guard: MakeGuard | None,
    middleware: Sequence[ConsumeMiddleware],
    on_failure: Callable[[BaseException], None] | None,
    on_crash: Callable[[BaseException], None],
) -> Receiver:
    """Subscribe and start handling."""
    source = registration.source(settings.namespace)
    limits = limits_for(registration, settings)
    adapter = connection.adapter
    subscription = await adapter.subscribe(
        source,
        SubscribeOptions(prefetch=limits.prefetch, lease=limits.lease, start=registration.options.start),
    )
    receiver = Receiver(subscription, source, limits, capabilities=adapter.capabilities, clock=clock, on_crash=on_crash)
    made = guard(f"{source.address.name}|{source.group}", receiver) if guard else None
    handler = _handler(registration, connection, settings, receiver, made, clock, middleware, on_failure)
    receiver.start(handler, also=_heartbeat(made, clock) if made and made.heartbeat else None)
    return receiver


def _handler(
    registration: Registration,
    connection: Connection,
    settings: Settings,
    receiver: Receiver,
    guard: Guard | None,
    clock: Clock,
    middleware: Sequence[ConsumeMiddleware],
    on_failure: Callable[[BaseException], None] | None,
) -> Handles:
    channel, options = registration.channel, registration.options
    controls = _controls(receiver, early=not options.batch and (guard is None or guard.settles_early))
    responder = None
    if isinstance(channel, Answered):
        responder = Replier(
            channel, connection.publisher, service=settings.service, clock=clock, settle=receiver.settle_later
        )
    dispatcher = Dispatcher(
        receiver.source,
        channel,
        registration.plans,
        Rules(retry=options.retry, max_body=settings.max_body, unknown=options.unknown, park=options.park),
        namespace=settings.namespace,
        capabilities=connection.adapter.capabilities,
        clock=clock,
        in_thread=receiver.in_thread,
        controls=controls,
        middleware=middleware,
        guard=guard,
        responder=responder,
        on_failure=on_failure,
    )
    controls.dead_letter = lambda received, error: dispatcher.failures.dead_letter(
        received, error, attempt_of(received)
    )
    controls.retry_headers = dispatcher.failures.retry_headers
    if not options.batch:
        return dispatcher
    plan = registration.plans[0]
    caller = plan.caller(receiver.in_thread)
    return BatchDispatcher(
        dispatcher,
        lambda items: caller(items, items),
        deliveries=plan.takes_deliveries,
        controls=controls,
        guard=guard,
    )


def _controls(receiver: Receiver, *, early: bool) -> Controls:
    return Controls(settle=receiver.settle_now if early else None, extend=receiver.extend)


async def _heartbeat(guard: Guard, clock: Clock) -> None:
    beat = guard.heartbeat
    assert beat is not None
    while True:
        await clock.sleep(guard.lease / 3)
        await beat()


async def drain_all(receivers: Sequence[Receiver], timeout: float) -> None:
    """Drain receivers side by side."""
    await asyncio.gather(*(receiver.drain(timeout) for receiver in receivers))
