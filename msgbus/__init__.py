"""One Python API for queues, pub-sub and request-reply, with the same delivery guarantees on every broker.

Channels are values: a `Queue` (one consumer handles each message), a `Topic` (every group gets each message) and a
`RequestReply` (each message is answered). A `Bus` publishes to them and runs the handlers registered with `Bus.on`.
The broker is chosen by ``MSGBUS_URL``; what holds does not depend on it:

* what was published is confirmed,
* every message is handled at least once,
* what keeps failing is dead-lettered with its reason,
* what arrives twice is handled once, where a handler asks for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from msgbus._version import __version__

if TYPE_CHECKING:
    from msgbus._backoff import Retry
    from msgbus._bus import Bus
    from msgbus._channel import Channel, Queue, RequestReply, ScatterGather, Topic
    from msgbus._codec import Codec, JSONCodec
    from msgbus._dead_letters import DeadLetterBox, DeadMessage
    from msgbus._delivery import Delivery
    from msgbus._failure import DeadReason, Report
    from msgbus._idempotency import Idempotency
    from msgbus._message import Message
    from msgbus._session import Gathered, HealthReport
    from msgbus._sync import SyncBus
    from msgbus._typing import ManyOptions, PublishOptions
    from msgbus._url import BusURL
    from msgbus.adapter import Provision, Stats
    from msgbus.errors import BatchFailed, MsgbusError, Reject, RetryAfter
    from msgbus.testing.testbus import TestBus

_HOMES = {
    "BatchFailed": "msgbus.errors",
    "Bus": "msgbus._bus",
    "BusURL": "msgbus._url",
    "Channel": "msgbus._channel",
    "Codec": "msgbus._codec",
    "DeadLetterBox": "msgbus._dead_letters",
    "DeadMessage": "msgbus._dead_letters",
    "DeadReason": "msgbus._failure",
    "Delivery": "msgbus._delivery",
    "Gathered": "msgbus._session",
    "HealthReport": "msgbus._session",
    "Idempotency": "msgbus._idempotency",
    "JSONCodec": "msgbus._codec",
    "ManyOptions": "msgbus._typing",
    "Message": "msgbus._message",
    "MsgbusError": "msgbus.errors",
    "Provision": "msgbus.adapter",
    "PublishOptions": "msgbus._typing",
    "Queue": "msgbus._channel",
    "Reject": "msgbus.errors",
    "Report": "msgbus._failure",
    "RequestReply": "msgbus._channel",
    "Retry": "msgbus._backoff",
    "RetryAfter": "msgbus.errors",
    "ScatterGather": "msgbus._channel",
    "Stats": "msgbus.adapter",
    "SyncBus": "msgbus._sync",
    "TestBus": "msgbus.testing.testbus",
    "Topic": "msgbus._channel",
}
"""Where each name is. It is imported when it is first used: a command or a test pays for what it needs."""

__all__ = [
    "BatchFailed",
    "Bus",
    "BusURL",
    "Channel",
    "Codec",
    "DeadLetterBox",
    "DeadMessage",
    "DeadReason",
    "Delivery",
    "Gathered",
    "HealthReport",
    "Idempotency",
    "JSONCodec",
    "ManyOptions",
    "Message",
    "MsgbusError",
    "Provision",
    "PublishOptions",
    "Queue",
    "Reject",
    "Report",
    "RequestReply",
    "Retry",
    "RetryAfter",
    "ScatterGather",
    "Stats",
    "SyncBus",
    "TestBus",
    "Topic",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
