"""Channels: what is named and typed. A Queue, a Topic, a RequestReply or a ScatterGather is a value without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import MappingProxyType, UnionType
from typing import Any, Generic, TypeVar, Union, cast, get_args, get_origin, overload

from msgbus._codec import Codec, Decode, Encode, codec_for, type_name
from msgbus._names import check_name, is_pattern
from msgbus.adapter import Address, Kind
from msgbus.errors import ChannelError, EncodeError

__all__ = ["Answered", "Channel", "Queue", "RequestReply", "ScatterGather", "Topic"]

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")
Key = str | Callable[[Any], str | None] | None


class Channel(Generic[T]):
    """What all channels share; use `Queue`, `Topic`, `RequestReply` or `ScatterGather`."""

    kind: Kind

    def __init__(
        self,
        name: str,
        payload: Any = dict,
        *,
        key: Key = None,
        codec: Codec | None = None,
        native: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = check_name(name, f"the name of a {type(self).__name__}", pattern=self.kind is Kind.TOPIC)
        self.payload = payload
        self.types = _members(payload)
        self.codec: Codec = codec or codec_for(self.types[0])
        if codec is None and any(codec_for(t) is not self.codec for t in self.types):
            raise ChannelError(f"{self}: str or bytes cannot be one of several payload types; give them own channels")
        self.native = MappingProxyType(dict(native or {}))
        self.keyed = key is not None
        self.key_of = _key_function(key, self.types, self)
        self.type_names = {t: type_name(t, self.name) for t in self.types}
        if len(set(self.type_names.values())) < len(self.types):
            raise ChannelError(f"{self}: two payload types have the same name; give one a __msgbus_type__")
        self.decoders: dict[str, Decode] = {self.type_names[t]: self.codec.decoder(t) for t in self.types}
        self._encoders: dict[type, tuple[str, Encode]] = {}
        self._declared = [(t, self.type_names[t], self.codec.encoder(t)) for t in self.types]

    def encode(self, payload: T) -> tuple[str, bytes]:
        """Return the type name and the body of *payload*.

        Raises:
            EncodeError: The payload does not fit the channel.
        """
        found = self._encoders.get(type(payload))
        if found is None:
            found = self._encoders[type(payload)] = self._encoder_for(payload)
        try:
            return found[0], found[1](payload)
        except EncodeError as exc:
            raise EncodeError(f"{self}: {exc}") from exc.__cause__

    def _encoder_for(self, payload: Any) -> tuple[str, Encode]:
        if len(self._declared) == 1:
            return self._declared[0][1:]
        for declared, name, encode in self._declared:
            if isinstance(declared, type) and isinstance(payload, declared):
                return name, encode
        accepted = ", ".join(self.type_names.values())
        raise EncodeError(f"{self} carries {accepted}, got {type(payload).__name__}")

    def address(self, namespace: str = "") -> Address:
        """Return the channel's address at a broker."""
        name = f"{namespace}.{self.name}" if namespace else self.name
        return Address(self.kind, name, keyed=self.keyed, native=self.native)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Queue(Channel[T]):
    """A point-to-point queue: one consumer handles each message.

    Args:
        name: Words of letters, digits, ``_`` and ``-``, joined by dots.
        payload: The payload type: a pydantic model, dataclass, TypedDict, ``dict``, ``str``, ``bytes``, or a union of
            classes (handlers are then chosen by the message's type).
        key: Makes the queue ordered: messages with the same key are handled in order, one at a time. The name of a
            payload's attribute (or item), or a function from payload to key (None: no order for that message).
        codec: How payloads become bytes; JSON for all types but ``str`` and ``bytes``.
        native: Options only one broker has; see that broker's page.

    Raises:
        ChannelError: The name, the key or the payload type cannot be used.
    """

    kind = Kind.QUEUE

    @overload
    def __init__(
        self: Queue[dict[str, Any]],
        name: str,
        *,
        key: Key = ...,
        codec: Codec | None = ...,
        native: Mapping[str, Any] | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        payload: type[T],
        *,
        key: Key = ...,
        codec: Codec | None = ...,
        native: Mapping[str, Any] | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Queue[Any],
        name: str,
        payload: UnionType,
        *,
        key: Key = ...,
        codec: Codec | None = ...,
        native: Mapping[str, Any] | None = ...,
    ) -> None: ...
    def __init__(self, name: str, payload: Any = dict, **options: Any) -> None:
        super().__init__(name, payload, **options)


class Topic(Channel[T]):
    """A publish-subscribe topic: every group gets each message, and in a group one consumer handles it.

    The arguments are those of `Queue`. The name may be a pattern to subscribe to several topics at once: ``*``
    stands for one word, ``#`` as the last word for one or more. Nothing can be published to a pattern.
    """

    kind = Kind.TOPIC

    @overload
    def __init__(
        self: Topic[dict[str, Any]],
        name: str,
        *,
        key: Key = ...,
        codec: Codec | None = ...,
        native: Mapping[str, Any] | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        payload: type[T],
        *,
        key: Key = ...,
        codec: Codec | None = ...,
        native: Mapping[str, Any] | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Topic[Any],
        name: str,
        payload: UnionType,
        *,
        key: Key = ...,
        codec: Codec | None = ...,
        native: Mapping[str, Any] | None = ...,
    ) -> None: ...
    def __init__(self, name: str, payload: Any = dict, **options: Any) -> None:
        super().__init__(name, payload, **options)

    @property
    def is_pattern(self) -> bool:
        """Whether this is a pattern over topics, which can be subscribed to but not published to."""
        return is_pattern(self.name)


class Answered(Channel[Q], Generic[Q, R]):
    """What `RequestReply` and `ScatterGather` share."""

    def __init__(
        self,
        name: str,
        request: type[Q],
        reply: type[R],
        *,
        codec: Codec | None = None,
        native: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, request, codec=codec, native=native)
        self.reply = reply
        self.reply_codec = codec or codec_for(reply)
        self.encode_reply: Encode = self.reply_codec.encoder(reply)
        self.decode_reply = cast("Callable[[bytes], R]", self.reply_codec.decoder(reply))


class RequestReply(Answered[Q, R]):
    """Requests that are answered, each by one of the consumers there are.

    Args:
        name: As for `Queue`.
        request: The payload type of requests.
        reply: The payload type of answers.
        codec: How requests become bytes.
        native: Options only one broker has.
    """

    kind = Kind.REQUEST


class ScatterGather(Answered[Q, R]):
    """Requests that every group gets and answers; the caller gathers the answers with `Bus.gather`.

    The arguments are those of `RequestReply`.
    """

    kind = Kind.TOPIC


def _members(payload: Any) -> tuple[Any, ...]:
    if get_origin(payload) in (Union, UnionType):
        members = get_args(payload)
        if bad := [m for m in members if not isinstance(m, type)]:
            raise ChannelError(f"a channel's union must be of classes, got {bad[0]!r}")
        return members
    return (payload,)


def _key_function(key: Key, types: tuple[Any, ...], channel: object) -> Callable[[Any], str | None] | None:
    if key is None or callable(key):
        return key
    if not isinstance(key, str):
        raise ChannelError(f"{channel}: key= takes an attribute's name or a function, got {type(key).__name__}")
    name: str = key
    for payload in types:
        fields = _fields(payload)
        if fields is not None and name not in fields:
            raise ChannelError(f"{channel}: {payload.__name__} has no attribute {name!r} to be the key")

    def attribute(payload: Any) -> str | None:
        try:
            value = payload[name] if isinstance(payload, dict) else getattr(payload, name)
        except (KeyError, AttributeError):
            raise EncodeError(f"{channel}: the payload has no {name!r} to be the key") from None
        return None if value is None else str(value)

    return attribute


def _fields(payload: Any) -> set[str] | None:
    """Return the attribute names of *payload*, or None where they cannot be known."""
    if hasattr(payload, "model_fields"):
        return {n for n in dir(payload) if not n.startswith("_")} | set(payload.model_fields)
    if is_dataclass(payload) or hasattr(payload, "__required_keys__"):
        return set(payload.__annotations__) | {n for n in dir(payload) if not n.startswith("_")}
    return set() if payload in (str, bytes) else None
