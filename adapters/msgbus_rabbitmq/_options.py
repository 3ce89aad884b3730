"""The URL's options, and those of a channel's ``native={...}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from msgbus.errors import ConfigError

__all__ = ["Native", "Options"]

_PARTITIONS = 64
"""More partitions per keyed channel cost every consumer a queue each, and gain nothing."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an ``amqp://`` URL.

    Attributes:
        heartbeat: Seconds between signs of life; a silent peer is given up after two. 0 turns them off.
        queue_type: What new queues are: ``quorum`` (replicated, counts deliveries) or ``classic``.
        partitions: Into how many queues a keyed channel is split. All processes must agree.
        exchange: The topic exchange that all topics share.
        auth: ``plain`` (user and password) or ``external`` (the client certificate).
        ca: File with the certificate authorities that ``amqps://`` trusts; the system's when unset.
        cert: File with the client certificate.
        key: File with its private key.
        max_body: The largest body in bytes; not above the broker's ``max_message_size``.
    """

    heartbeat: int = 15
    queue_type: Literal["quorum", "classic"] = "quorum"
    partitions: int = 4
    exchange: str = "msgbus"
    auth: Literal["plain", "external"] = "plain"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    max_body: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 0 <= self.heartbeat <= 65535:
            raise ValueError(f"option 'heartbeat' must be 0 to 65535 seconds, got {self.heartbeat}")
        if not 1 <= self.partitions <= _PARTITIONS:
            raise ValueError(f"option 'partitions' must be 1 to {_PARTITIONS}, got {self.partitions}")
        if self.max_body < 1:
            raise ValueError(f"option 'max_body' must be at least 1 byte, got {self.max_body}")
        if self.key and not self.cert:
            raise ValueError("option 'key' needs the option 'cert'")


@dataclass(frozen=True, slots=True)
class Native:
    """The options of ``native={...}`` on a channel.

    Attributes:
        queue: The queue's name at the broker.
        exchange: The exchange to publish to, and to bind the queue to.
        exchange_type: Its type, where it is declared.
        routing_key: What is published with, and bound by; several to bind by may be given as a list.
        declare: False leaves queue, exchange and bindings alone: they exist already.
        queue_type: ``quorum`` or ``classic`` for this channel.
        arguments: Queue arguments, added to ours; None takes one of ours away.
        dead_letters: The name of the queue for dead letters.
        priority: The priority of published messages, 0 to 255.
        expiration: Milliseconds after which the broker drops a published message that still waits.
    """

    queue: str | None = None
    exchange: str | None = None
    exchange_type: str = "topic"
    routing_key: str | list[str] | tuple[str, ...] | None = None
    declare: bool = True
    queue_type: Literal["quorum", "classic"] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dead_letters: str | None = None
    priority: int | None = None
    expiration: int | None = None

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Native:
        """Read ``native={...}``.

        Raises:
            ConfigError: An option is unknown or does not fit; says which and what is accepted.
        """
        known = {f.name for f in fields(cls)}
        if unknown := set(options) - known:
            raise ConfigError(f"native={{}} of amqp:// has no {sorted(unknown)}; it knows: {', '.join(sorted(known))}")
        native = cls(**options)
        if native.queue_type not in (None, "quorum", "classic"):
            raise ConfigError(f"native 'queue_type' must be 'quorum' or 'classic', got {native.queue_type!r}")
        if native.priority is not None and not 0 <= native.priority <= 255:
            raise ConfigError(f"native 'priority' must be 0 to 255, got {native.priority!r}")
        if native.expiration is not None and native.expiration < 0:
            raise ConfigError(f"native 'expiration' must be 0 or more milliseconds, got {native.expiration!r}")
        return native

    @property
    def keys(self) -> tuple[str, ...]:
        """The routing keys to bind by, as given; empty for the channel's own name."""
        if self.routing_key is None:
            return ()
        return (self.routing_key,) if isinstance(self.routing_key, str) else tuple(self.routing_key)
