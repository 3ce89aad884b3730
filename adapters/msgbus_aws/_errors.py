"""What boto3 and the services say, as msgbus errors."""

from __future__ import annotations

from typing import Any

from botocore import exceptions as aws

from msgbus.errors import (
    AccessDenied,
    BrokerError,
    BrokerUnavailable,
    ConfirmLost,
    LeaseLost,
    MessageTooLarge,
    NotSent,
    PublishError,
    PublishRejected,
    SettleError,
    Unroutable,
)

__all__ = [
    "Busy",
    "Gone",
    "code_of",
    "is_missing",
    "refused_entry",
    "translate",
    "unpublished",
    "unsettled_entry",
]

_MISSING = frozenset({
    "AWS.SimpleQueueService.NonExistentQueue",
    "QueueDoesNotExist",
    "NonExistentQueue",
    "NotFound",
    "NotFoundException",
    "AWS.SimpleQueueService.QueueDoesNotExist",
    "ResourceNotFoundException",
    "NoSuchBucket",
})  # fmt: skip
_DENIED = frozenset({
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationError",
    "AuthorizationErrorException",
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "KMS.AccessDeniedException",
    "KMSAccessDenied",
    "KmsAccessDenied",
    "MissingAuthenticationToken",
    "NotAuthorized",
    "OptInRequired",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
})  # fmt: skip
_BUSY = frozenset({
    "EC2ThrottledException",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "KMS.ThrottlingException",
    "KmsThrottled",
    "LimitExceededException",
    "OverLimit",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "AWS.SimpleQueueService.QueueDeletedRecently",
    "QueueDeletedRecently",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttled",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
})  # fmt: skip
_TOO_LONG = frozenset({"AWS.SimpleQueueService.BatchRequestTooLong", "BatchRequestTooLong", "RequestTooLarge"})
_LOST = frozenset({
    "AWS.SimpleQueueService.MessageNotInflight",
    "InvalidReceiptHandle",
    "MessageNotInflight",
    "ReceiptHandleIsInvalid",
})  # fmt: skip
_NOT_REACHED = (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ProxyConnectionError)
"""No request was sent: the connection could not be made."""
_NO_CREDENTIALS = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.TokenRetrievalError,
    aws.UnauthorizedSSOTokenError,
    aws.SSOTokenLoadError,
    aws.ProfileNotFound,
    aws.ConfigNotFound,
)
_ACTIONS = {
    "SendMessageBatch": "SendMessage",
    "DeleteMessageBatch": "DeleteMessage",
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
    "PublishBatch": "Publish",
    "HeadBucket": "ListBucket",
}
"""IAM knows batches by the name of the single operation."""


class Busy(NotSent):
    """The service cannot take the message now: throttled, or out of order."""

    retryable = True


class Gone(BrokerError):
    """What was asked for does not exist: a queue, a topic, a table, a bucket."""


def code_of(exc: BaseException | None) -> str:
    """Return the service's error code, or nothing."""
    return str(exc.response.get("Error", {}).get("Code", "")) if isinstance(exc, aws.ClientError) else ""


def is_missing(exc: BaseException) -> bool:
    """Tell whether *exc* says that a queue or topic does not exist."""
    query = exc.response.get("Error", {}).get("QueryErrorCode", "") if isinstance(exc, aws.ClientError) else ""
    return code_of(exc) in _MISSING or query in _MISSING


def action_of(service: str, operation: str) -> str:
    """Return the IAM action that allows *operation*."""
    return f"{service}:{_ACTIONS.get(operation, operation)}"


def translate(exc: BaseException, service: str, doing: str) -> BrokerError:
    """Return the msgbus error for what went wrong while *doing* something; the caller raises it from *exc*.

    Args:
        exc: What boto3 raised.
        service: ``sqs``, ``sns``, ``s3`` or ``dynamodb``.
        doing: What was being done, with the name of the resource.
    """
    if isinstance(exc, BrokerError):
        return exc
    if isinstance(exc, _NO_CREDENTIALS):
        return AccessDenied(f"{doing}: {exc}; boto3 looks for them in the environment, the profile and the role")
    if not isinstance(exc, aws.ClientError):
        return BrokerUnavailable(f"{doing}: {exc}")
    code, text = code_of(exc), _text(exc)
    if code in _DENIED or (exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 403 and code not in _BUSY):
        return AccessDenied(f"{doing}: {text}; it needs the permission {action_of(service, exc.operation_name)}")
    if is_missing(exc):
        return Gone(f"{doing}: {text}")
    if _is_busy(exc):
        return BrokerUnavailable(f"{doing}: {text}")
    return BrokerError(f"{doing}: {text}")


def _is_busy(exc: aws.ClientError) -> bool:
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code_of(exc) in _BUSY or status >= 500 or status == 429


def _text(exc: aws.ClientError) -> str:
    error = exc.response.get("Error", {})
    return f"{error.get('Code', 'error')}: {error.get('Message') or 'no explanation'}"


def unpublished(exc: BaseException, service: str, doing: str, *, size: int, limit: int) -> PublishError:
    """Return the error of each message of a batch whose request failed as a whole."""
    error = _unpublished(exc, service, doing, size, limit)
    error.__cause__ = exc
    return error


def _unpublished(exc: BaseException, service: str, doing: str, size: int, limit: int) -> PublishError:
    reason = translate(exc, service, doing)
    if isinstance(reason, Gone):
        return Unroutable(str(reason))
    if code_of(exc) in _TOO_LONG:
        return MessageTooLarge(size, limit)
    if isinstance(exc, _NOT_REACHED):
        return Busy(str(reason))
    if isinstance(exc, aws.ClientError):
        # An internal failure may have happened after the message was stored; a refusal did not.
        if exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            return ConfirmLost(str(reason))
        return Busy(str(reason)) if _is_busy(exc) else PublishRejected(str(reason))
    if isinstance(reason, AccessDenied | Gone):
        return PublishRejected(str(reason))
    return ConfirmLost(str(reason))  # a connection that broke, or an answer that did not come in time


def refused_entry(entry: dict[str, Any], service: str, doing: str) -> PublishError:
    """Return the error of one message of a batch that the service answered for one by one."""
    code = str(entry.get("Code", "error"))
    text = f"{doing}: {code}: {entry.get('Message') or 'no explanation'}"
    if code in _MISSING:
        return Unroutable(text)
    if code in _DENIED:
        operation = {"sqs": "SendMessage", "sns": "Publish"}[service]
        return PublishRejected(f"{text}; it needs the permission {action_of(service, operation)}")
    if code in _BUSY or not entry.get("SenderFault", True):
        return Busy(text)
    return PublishRejected(text)


def unsettled_entry(entry: dict[str, Any], doing: str) -> SettleError:
    """Return the error of one entry of a batch of deletes or visibility changes."""
    text = f"{doing}: {entry.get('Code', 'error')}: {entry.get('Message') or 'no explanation'}"
    return LeaseLost(text) if _is_lost(entry) else SettleError(text)


def _is_lost(entry: dict[str, Any]) -> bool:
    """Tell whether a receipt is no good any more: expired, or beyond the twelve hours that it can be extended."""
    return entry.get("Code") in _LOST or (
        entry.get("Code") in ("InvalidParameterValue", "InvalidParameter")
        and any(word in str(entry.get("Message", "")) for word in ("expired", "beyond the limit", "not available"))
    )
