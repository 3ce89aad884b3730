"""Handlers compiled once, at registration: what they take, how they are called, which messages are theirs."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from msgbus._channel import Channel
from msgbus._delivery import Delivery
from msgbus._message import Message
from msgbus.errors import HandlerError

__all__ = ["Plan", "compile_plan"]

InThread = Callable[..., Awaitable[Any]]
_LISTS = (list, Sequence)


class Plan:
    """How to call one handler.

    Attributes:
        handler: The function as registered.
        name: Its qualified name, for logs and errors.
        types: The channel's payload types that it takes.
        wants_delivery: Whether a `Delivery` must be made for it.
        takes_deliveries: Whether it takes one itself (a batch handler: a list of them).
        transaction: The type of connection it takes, or None.
    """

    __slots__ = (
        "_arrange",
        "handler",
        "is_async",
        "name",
        "takes_deliveries",
        "transaction",
        "types",
        "wants_delivery",
    )

    def __init__(self, handler: Callable[..., Any], types: tuple[Any, ...], roles: list[str], transaction: Any) -> None:
        self.handler = handler
        self.name = _name(handler)
        self.types = types
        self.is_async = _is_async(handler)
        self._arrange = _arrangement(roles)
        self.wants_delivery = self._arrange is not None
        self.takes_deliveries = "delivery" in roles
        self.transaction = transaction

    def caller(self, in_thread: InThread) -> Callable[[Any, Any], Awaitable[Any]]:
        """Return ``call(payload, delivery)``; plain functions run through *in_thread*.

        A handler that takes nothing but the payload is called as ``call(payload)``: see `direct`.
        """
        arrange, handler = self._arrange, self.handler
        if arrange is None:
            direct = self.direct(in_thread)
            return lambda payload, _: direct(payload)
        if self.is_async:
            return lambda payload, delivery: handler(*arrange(payload, delivery))
        return lambda payload, delivery: in_thread(handler, *arrange(payload, delivery))

    def direct(self, in_thread: InThread) -> Callable[[Any], Awaitable[Any]]:
        """Return ``call(payload)``, without any layer between, for a handler that takes nothing else."""
        return self.handler if self.is_async else partial(in_thread, self.handler)


def compile_plan(handler: Callable[..., Any], channel: Channel[Any], *, batch: bool) -> Plan:
    """Compile *handler* for *channel*.

    Raises:
        HandlerError: The signature fits no payload of the channel; the text names both.
    """
    if not callable(handler):
        raise HandlerError(f"a handler must be callable, got {type(handler).__name__}")
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise HandlerError(f"{_name(handler)} is a generator; a handler returns, it does not yield")
    parameters = _parameters(handler)
    hints = _hints(handler, parameters, channel)
    roles: list[str] = []
    types = channel.types
    transaction: Any = None
    for parameter in parameters:
        annotation = hints.get(parameter.name, Any)
        role = _role(annotation, batch=batch)
        if role == "payload":
            types = _accepted(handler, annotation, channel, batch=batch)
        elif role == "transaction":
            transaction = get_origin(annotation) or annotation
        if role in roles:
            raise HandlerError(
                f"{_name(handler)}: parameter {parameter.name!r} is one too many; a handler takes the payload, and if "
                "it likes a Delivery, a Message and the connection of Idempotency(within=) (by annotation)"
            )
        roles.append(role)
    if not {*roles} - {"transaction"}:
        raise HandlerError(f"{_name(handler)} takes no parameter; a handler takes at least the payload or a Delivery")
    if batch and len({*roles} - {"transaction"}) != 1:
        raise HandlerError(f"{_name(handler)}: a batch handler takes one list, of payloads or of Deliveries")
    return Plan(handler, types, roles, transaction)


def _arrangement(roles: list[str]) -> Callable[..., tuple[Any, ...]] | None:
    match roles:
        case ["payload"]:
            return None
        case ["payload", "delivery"]:
            return lambda payload, delivery: (payload, delivery)
        case ["delivery"]:
            return lambda _, delivery: (delivery,)
        case _:
            pick: dict[str, Callable[[Any, Any], Any]] = {
                "payload": lambda payload, _: payload,
                "delivery": lambda _, delivery: delivery,
                "message": lambda _, delivery: delivery.message,
                "transaction": lambda _, delivery: delivery.transaction,
            }
            chosen = [pick[role] for role in roles]
            return lambda payload, delivery: tuple(choose(payload, delivery) for choose in chosen)


def _parameters(handler: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(handler)
    except ValueError as exc:
        raise HandlerError(f"{_name(handler)} has no signature msgbus can read; wrap it in a function") from exc
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise HandlerError(f"{_name(handler)}: nothing can be passed to keyword-only {parameter.name!r}")
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and (
            parameter.default is parameter.empty
        ):
            found.append(parameter)
    return found


def _hints(handler: Callable[..., Any], parameters: list[inspect.Parameter], channel: Channel[Any]) -> dict[str, Any]:
    target: Any = handler
    while isinstance(target, partial):
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return get_type_hints(target)
    except NameError:
        return {p.name: _resolve(p.annotation, target, channel) for p in parameters}


def _resolve(annotation: Any, target: Any, channel: Channel[Any]) -> Any:
    """Resolve an annotation whose names are local to a function, where `get_type_hints` cannot see them."""
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    names: dict[str, Any] = {"Delivery": Delivery, "Message": Message}
    names.update({t.__name__: t for t in channel.types if isinstance(t, type)})
    try:
        return eval(annotation, getattr(target, "__globals__", {}), names)  # noqa: S307 - the programmer's own text
    except NameError as exc:
        raise HandlerError(f"{_name(target)}: cannot resolve the annotation {annotation!r}: {exc}") from exc


def _role(annotation: Any, *, batch: bool) -> str:
    if _is_connection(get_origin(annotation) or annotation):
        return "transaction"
    if batch:
        annotation = (get_args(annotation) or (Any,))[0]
        if (get_origin(annotation) or annotation) is Delivery:
            return "delivery"
        return "payload"
    origin = get_origin(annotation) or annotation
    return "delivery" if origin is Delivery else "message" if origin is Message else "payload"


def _is_connection(annotation: Any) -> bool:
    """Tell connections and sessions of whatever library by what they can do."""
    can = (getattr(annotation, name, None) for name in ("commit", "rollback"))
    return isinstance(annotation, type) and all(map(callable, can))


def _accepted(handler: Callable[..., Any], annotation: Any, channel: Channel[Any], *, batch: bool) -> tuple[Any, ...]:
    wanted = annotation
    if batch and annotation is not Any:
        if get_origin(annotation) not in _LISTS and annotation not in _LISTS:
            raise HandlerError(f"{_name(handler)}: a batch handler takes a list, got {_show(annotation)}")
        wanted = (get_args(annotation) or (Any,))[0]
    members = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    types = tuple(t for t in channel.types if any(_fits(t, m) for m in members))
    if not types:
        carried = " | ".join(_show(t) for t in channel.types)
        raise HandlerError(f"{_name(handler)} takes {_show(wanted)}, but {channel!r} carries {carried}")
    return types


def _fits(payload: Any, annotation: Any) -> bool:
    if annotation in (Any, object) or isinstance(annotation, str) or payload == annotation:
        return True
    declared, wanted = get_origin(payload) or payload, get_origin(annotation) or annotation
    if isinstance(declared, type) and isinstance(wanted, type):
        try:
            return issubclass(declared, wanted)
        except TypeError:
            return False
    return False


def _is_async(handler: Any) -> bool:
    while isinstance(handler, partial):
        handler = handler.func
    if inspect.iscoroutinefunction(handler):
        return True
    return not inspect.isroutine(handler) and inspect.iscoroutinefunction(type(handler).__call__)


def _name(handler: Any) -> str:
    while isinstance(handler, partial):
        handler = handler.func
    return str(getattr(handler, "__qualname__", None) or type(handler).__qualname__)


def _show(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
