"""aiokafka's errors, in our words."""

from __future__ import annotations

import aiokafka.errors as kafka

from msgbus.errors import (
    AccessDenied,
    BrokerError,
    BrokerUnavailable,
    MessageTooLarge,
    NotSent,
    PublishError,
    PublishRejected,
    PublishTimeout,
    Unroutable,
)

__all__ = ["NotNow", "TopicGone", "Unconfirmed", "broker_error", "ends_producer", "publish_error"]

_DENIED = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.SaslAuthenticationFailed,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
)
_OUT_OF_STEP = (
    kafka.OutOfOrderSequenceNumber,
    kafka.ProducerFenced,
    kafka.InvalidProducerEpoch,
    kafka.UnknownProducerId,
    kafka.ProducerClosed,
)
"""The producer's session is over, whatever the record."""


class Unconfirmed(PublishTimeout):
    """The connection or the partition's leader went away meanwhile; sent again with the same id."""

    retryable = True


class NotNow(NotSent):
    """The broker cannot be asked, or does not take what was sent before; nothing was sent."""

    retryable = True


class TopicGone(kafka.UnknownTopicOrPartitionError):  # type: ignore[misc] # the base class has no types
    """A topic was deleted while a batch for it was on its way."""


def broker_error(exc: BaseException, doing: str) -> BrokerError:
    """Return our error for what a client call other than a publish raised."""
    if isinstance(exc, BrokerError):
        return exc
    if isinstance(exc, TimeoutError):
        return BrokerUnavailable(f"the Kafka broker did not answer in time while {doing}")
    text = f"{_name(exc)} while {doing}: {exc}" if str(exc) else f"{_name(exc)} while {doing}"
    if isinstance(exc, _DENIED):
        return AccessDenied(text)
    if isinstance(exc, kafka.KafkaError) and not exc.retriable and not _is_connection(exc):
        return BrokerError(text)
    return BrokerUnavailable(text)


def ends_producer(exc: BaseException | None) -> bool:
    """Tell whether a producer that raised *exc* is of no use any more, so that a new one is needed.

    An idempotent producer numbers its records, and the library does not take back the numbers of a batch that the
    broker refused for good: whatever follows in that partition is refused as out of order.
    """
    if isinstance(exc, TopicGone):
        return True  # it would deliver the batch after all, should somebody make the topic again
    refused = isinstance(exc, kafka.BrokerResponseError) and not exc.retriable
    # A bare KafkaError is what the library's sender leaves behind when it crashes.
    return refused or isinstance(exc, kafka.ProducerFenced | kafka.ProducerClosed) or type(exc) is kafka.KafkaError


def publish_error(exc: BaseException, topic: str, size: int, limit: int) -> PublishError:
    """Return our error for one message that was not confirmed.

    Args:
        exc: What its future raised.
        topic: Where it was going.
        size: Its body's size in bytes.
        limit: The adapter's maximum.
    """
    if isinstance(exc, PublishError):
        return exc
    if isinstance(exc, kafka.MessageSizeTooLargeError | kafka.RecordListTooLargeError):
        return MessageTooLarge(size, min(limit, size - 1))
    if isinstance(exc, kafka.UnknownTopicOrPartitionError | kafka.InvalidTopicError):
        return Unroutable(f"there is no topic {topic!r}")
    if isinstance(exc, kafka.KafkaTimeoutError):
        return NotNow(f"{topic}: the batch before was not sent in time")
    if isinstance(exc, kafka.BrokerResponseError) and not exc.retriable and not isinstance(exc, _OUT_OF_STEP):
        return PublishRejected(f"{topic}: {_name(exc)}: {exc}")
    return Unconfirmed(f"{topic}: {_name(exc)}: {exc}")


def _is_connection(exc: kafka.KafkaError) -> bool:
    return isinstance(exc, kafka.KafkaConnectionError | kafka.KafkaUnavailableError | kafka.KafkaTimeoutError)


def _name(exc: BaseException) -> str:
    return type(exc).__name__.removesuffix("Error")
