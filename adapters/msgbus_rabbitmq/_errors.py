"""What py-amqp, TLS and the socket raise, as msgbus errors."""

from __future__ import annotations

import ssl

from amqp import exceptions as amqp

from msgbus.errors import AccessDenied, BrokerUnavailable, MsgbusError, NotSent, TopologyError

__all__ = ["Interrupted", "reason", "translate"]

# The first class that fits; the rest (lost connections, timeouts, unknown codes) is worth another try.
_TABLE: tuple[tuple[type[BaseException], type[MsgbusError]], ...] = (
    (amqp.AccessRefused, AccessDenied),  # 403: credentials, or a permission
    (amqp.NotAllowed, AccessDenied),  # 530: the virtual host
    (amqp.NotFound, TopologyError),  # 404
    (amqp.ResourceLocked, TopologyError),  # 405: somebody's exclusive queue
    (amqp.PreconditionFailed, TopologyError),  # 406: declared with other arguments
    (ssl.SSLCertVerificationError, AccessDenied),
)


class Interrupted(NotSent):
    """The connection broke before the message was written; tried again."""

    retryable = True


def reason(exc: BaseException) -> str:
    """Return a client error's text without its frills; a timeout's is empty, so say what it is."""
    if isinstance(exc, amqp.AMQPError):
        return f"{exc.reply_code} {exc.reply_text}" if exc.reply_code else str(exc.reply_text)
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    return str(exc) or type(exc).__name__


def translate(exc: BaseException, what: str) -> MsgbusError:
    """Return the msgbus error for *exc*, raised while doing *what*."""
    if isinstance(exc, MsgbusError):
        return exc
    error = next((ours for theirs, ours in _TABLE if isinstance(exc, theirs)), BrokerUnavailable)
    result = error(f"{what}: {reason(exc)}")
    result.__cause__ = exc
    return result
