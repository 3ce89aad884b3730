"""Every error msgbus raises, by what the caller can do about it.

::

    MsgbusError
    ├── ConfigError (ValueError)      mend a URL, an environment variable or an option
    │   ├── UnknownScheme             no adapter or store is installed under that URL scheme
    │   └── MissingExtra              the adapter is there, its client library is not
    ├── ChannelError (ValueError)     mend a channel's name, key or payload type
    ├── HandlerError (TypeError)      mend a handler's signature or its registration
    ├── UnsupportedFeature            this broker cannot do that: drop it, or choose another broker
    ├── TopologyError                 what exists at the broker is missing or differs from what was declared
    ├── ClosedError                   the bus or subscription was closed: do not use it any more
    ├── AlreadySettled                a delivery was settled twice
    ├── BrokerError                   the broker answered no, or not at all
    │   ├── BrokerUnavailable         not reachable now: the call is retried, then raised  (retryable)
    │   └── AccessDenied              wrong credentials or missing permission
    ├── PayloadError (ValueError)
    │   ├── EncodeError               a payload does not fit its channel, nothing was sent
    │   └── DecodeError               a body does not fit its channel: dead-lettered, never retried
    ├── PublishError                  a message was not confirmed
    │   ├── NotSent                   the broker certainly does not have it
    │   │   ├── MessageTooLarge       over the adapter's maximum
    │   │   ├── Unroutable            nothing at the broker takes it
    │   │   │   └── NoResponders      nobody answers requests on that channel
    │   │   └── PublishRejected       the broker refused it (full, not allowed)
    │   ├── ConfirmLost               the connection broke before the answer: tried again  (retryable)
    │   ├── PublishTimeout            unknown whether the broker has it: publish again with the same id
    │   └── PublishFailed             some messages of send_many/publish_many failed; says which
    ├── SettleError                   an acknowledgement did not reach the broker: the message comes again
    │   └── LeaseLost                 the message was given to somebody else meanwhile
    ├── RequestError
    │   ├── RequestTimeout            no answer within the timeout
    │   └── RemoteError               the responder failed; carries its exception's type and text
    ├── StoreError                    the idempotency store
    │   ├── StoreUnavailable          not reachable now  (retryable)
    │   ├── ClaimLost                 the claim was taken over meanwhile
    │   └── PayloadMismatch           the same key came with another payload
    └── HandlerSignal                 raised *by* handlers to say what is to happen
        ├── Reject                    dead-letter this message at once
        ├── RetryAfter                try again after so many seconds
        └── BatchFailed               these items of the batch failed, the others are done

``retryable`` is a fact of the class: whether the same call can succeed later without any change.
A client library's own exception is always the ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

__all__ = [
    "AccessDenied",
    "AlreadySettled",
    "BatchFailed",
    "BrokerError",
    "BrokerUnavailable",
    "ChannelError",
    "ClaimLost",
    "ClosedError",
    "ConfigError",
    "ConfirmLost",
    "DecodeError",
    "EncodeError",
    "HandlerError",
    "HandlerSignal",
    "LeaseLost",
    "MessageTooLarge",
    "MissingExtra",
    "MsgbusError",
    "NoResponders",
    "NotSent",
    "PayloadError",
    "PayloadMismatch",
    "PublishError",
    "PublishFailed",
    "PublishRejected",
    "PublishTimeout",
    "Reject",
    "RemoteError",
    "RequestError",
    "RequestTimeout",
    "RetryAfter",
    "SettleError",
    "StoreError",
    "StoreUnavailable",
    "TopologyError",
    "UnknownScheme",
    "Unroutable",
    "UnsupportedFeature",
]


class MsgbusError(Exception):
    """The root of all errors msgbus raises."""

    retryable = False


class ConfigError(MsgbusError, ValueError):
    """A URL, an environment variable or an option is wrong."""


class UnknownScheme(ConfigError):
    """No adapter or store is registered for the URL's scheme."""


class MissingExtra(ConfigError):
    """The adapter's client library is not installed; the message names the extra to install."""


class ChannelError(MsgbusError, ValueError):
    """A channel's name, key or payload type cannot be used."""


class HandlerError(MsgbusError, TypeError):
    """A handler's signature fits no payload, or it is registered where another one already is."""


class UnsupportedFeature(MsgbusError):
    """The adapter does not have a feature that was asked for.

    Args:
        adapter: The adapter's name, as in its URL scheme.
        feature: The capability's name, as in the capability table.
        hint: What to do instead.
    """

    def __init__(self, adapter: str, feature: str, hint: str = "") -> None:
        self.adapter = adapter
        self.feature = feature
        super().__init__(f"the {adapter} adapter does not support {feature}{': ' + hint if hint else ''}")


class TopologyError(MsgbusError):
    """What exists at the broker is missing, or differs from what was declared."""


class ClosedError(MsgbusError):
    """The bus, adapter or subscription was closed (or not opened yet)."""


class AlreadySettled(MsgbusError):
    """A delivery was acked, nacked or rejected a second time."""


class BrokerError(MsgbusError):
    """The broker refused a call, or failed."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached now. Nothing of the failed call took effect."""

    retryable = True


class AccessDenied(BrokerError):
    """The broker refused the credentials, or they lack a permission."""


class PayloadError(MsgbusError, ValueError):
    """A payload and its channel's type do not fit."""


class EncodeError(PayloadError):
    """A payload cannot be encoded for its channel. Nothing was sent."""


class DecodeError(PayloadError):
    """A body cannot be decoded to its channel's type."""


class PublishError(MsgbusError):
    """A message was not confirmed by the broker."""


class NotSent(PublishError):
    """The broker certainly does not have the message."""


class MessageTooLarge(NotSent):
    """The body is over the maximum of the adapter or of the settings.

    Args:
        size: The body's size in bytes.
        limit: The maximum in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"the message has {size} bytes, at most {limit} are taken")


class Unroutable(NotSent):
    """Nothing at the broker takes the message: no such queue, topic or binding."""


class NoResponders(Unroutable):
    """Nobody answers requests on that channel."""


class PublishRejected(NotSent):
    """The broker refused the message: a full queue, or a policy."""


class ConfirmLost(PublishError):
    """The connection broke before the broker had answered, so it is unknown whether it has the message.

    What an adapter returns for such a message; the core publishes it again with the same id until the timeout.
    """

    retryable = True


class PublishTimeout(PublishError):
    """No confirmation arrived in time, so it is unknown whether the broker has the message.

    Publishing it again with the same id is safe where the consumers are idempotent.
    """


class PublishFailed(PublishError):
    """Some messages of a `send_many` or `publish_many` were not confirmed; all others were.

    Args:
        failures: The failed items' positions in the iterable (from 0), and why each failed.
        total: How many messages there were.
    """

    def __init__(self, failures: Mapping[int, MsgbusError], total: int) -> None:
        self.failures = dict(failures)
        self.total = total
        first = next(iter(self.failures))
        super().__init__(
            f"{len(self.failures)} of {total} messages were not confirmed; "
            f"the first is number {first}: {self.failures[first]}"
        )


class SettleError(MsgbusError):
    """An acknowledgement did not reach the broker; the message will come again."""


class LeaseLost(SettleError):
    """The message's lease ended, and it was (or will be) given to another consumer."""


class RequestError(MsgbusError):
    """A request got no usable answer."""


class RequestTimeout(RequestError):
    """No answer arrived within the timeout. The responder may still have done the work."""


class RemoteError(RequestError):
    """The responder's handler failed.

    Args:
        type: The class name of the responder's exception.
        detail: Its text.
    """

    def __init__(self, type: str, detail: str) -> None:
        self.type = type
        self.detail = detail
        super().__init__(f"{type}: {detail}")


class StoreError(MsgbusError):
    """The idempotency store failed."""


class StoreUnavailable(StoreError):
    """The idempotency store cannot be reached now."""

    retryable = True


class ClaimLost(StoreError):
    """The claim's lease ended and another worker holds the key now."""


class PayloadMismatch(StoreError):
    """The same idempotency key was used before with another payload."""


class HandlerSignal(Exception):
    """The root of what a handler raises to say what is to happen to its message."""


class Reject(HandlerSignal):
    """Dead-letter the message at once, without any further attempt.

    Args:
        reason: Why; it is stored with the dead letter.
    """

    def __init__(self, reason: str = "rejected by the handler") -> None:
        self.reason = reason
        super().__init__(reason)


class RetryAfter(HandlerSignal):
    """Try the message again after a given time instead of the policy's delay.

    It counts as an attempt: when the policy's attempts are used up, the message is dead-lettered.

    Args:
        delay: Seconds (or a timedelta) to wait.
        reason: Why; it is stored if the message ends up dead-lettered.
    """

    def __init__(self, delay: float | timedelta, reason: str = "retry asked for by the handler") -> None:
        self.delay = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        if not 0 <= self.delay < float("inf"):
            raise ValueError(f"RetryAfter takes a delay of 0 or more seconds, got {delay!r}")
        self.reason = reason
        super().__init__(f"{reason} (after {self.delay:g} s)")


class BatchFailed(HandlerSignal):
    """Some items of a batch failed; all the others are done.

    Args:
        failures: The failed items' positions in the list the handler got (from 0), and each one's exception
            (`Reject` and `RetryAfter` work here too).
    """

    def __init__(self, failures: Mapping[int, BaseException]) -> None:
        if not failures:
            raise ValueError("BatchFailed needs at least one failed item; return normally when all are done")
        self.failures = dict(failures)
        super().__init__(f"{len(self.failures)} items of the batch failed: {sorted(self.failures)}")
