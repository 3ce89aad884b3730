"""What the client library and the server say, as msgbus errors."""

from __future__ import annotations

import ssl
from typing import Any

from nats import errors

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

__all__ = ["ApiError", "Busy", "Unconfirmed", "refused", "translate"]

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
STREAM_EXISTS = 10058
CONSUMER_EXISTS = frozenset({10013, 10148, 10105})
_TOO_LARGE = 10054
_IN_PROCESS = 10158
"""An earlier attempt to publish the message has not been decided upon by the cluster yet."""
_FULL = frozenset({10077, 10047, 10028, 10023})
"""Limits of a stream, an account or the server are reached. Publishing again changes nothing until someone acts."""
_DENIED = ("authorization", "authentication", "permissions", "user authentication", "account")


class Unconfirmed(PublishTimeout):
    """It is unknown whether the server has the message; published again with the same id it is stored once."""

    retryable = True


class Busy(NotSent):
    """The server cannot take the message now."""

    retryable = True


class ApiError(BrokerError):
    """JetStream refused an administrative request.

    Args:
        endpoint: What was asked.
        error: The server's error object.
    """

    def __init__(self, endpoint: str, error: dict[str, Any]) -> None:
        self.code = int(error.get("code", 0))
        self.err_code = int(error.get("err_code", 0))
        self.description = str(error.get("description", "no description"))
        super().__init__(f"{endpoint}: {self.description} (code {self.code}, error {self.err_code})")

    @property
    def temporary(self) -> bool:
        """Whether the same request can succeed later: no leader yet, or JetStream is starting."""
        return self.code in (429, 503) and self.err_code not in _FULL


def translate(exc: BaseException, doing: str) -> BrokerError:
    """Return the msgbus error for what went wrong while *doing* something; the caller raises it from *exc*.

    nats-py reports a refused connection attempt as its plain ``Error`` with the server's text, so that is looked at.
    """
    text = str(exc) or type(exc).__name__
    if isinstance(exc, BrokerError):
        return exc
    if isinstance(exc, errors.AuthorizationError) or _is_denial(exc, text):
        return AccessDenied(f"{doing}: {text.removeprefix('nats: ')}")
    if isinstance(exc, ssl.SSLCertVerificationError):
        return AccessDenied(f"{doing}: the server's certificate is not trusted: {exc.verify_message}")
    return BrokerUnavailable(f"{doing}: {text.removeprefix('nats: ')}")


def _is_denial(exc: BaseException, text: str) -> bool:
    if type(exc) is not errors.Error:
        return False
    lowered = text.lower().removeprefix("nats: ").strip("' \r\n")
    return lowered.startswith(_DENIED) or "violation" in lowered


def refused(error: dict[str, Any], subject: str, size: int, limit: int) -> PublishError:
    """Return the error for a publish that JetStream answered with *error*."""
    reason = ApiError(f"publish to {subject}", error)
    if reason.err_code == _TOO_LARGE:
        return MessageTooLarge(size, limit)
    if reason.err_code == STREAM_NOT_FOUND:
        return Unroutable(str(reason))
    if reason.err_code == _IN_PROCESS:
        return Unconfirmed(str(reason))
    return Busy(str(reason)) if reason.temporary else PublishRejected(str(reason))
