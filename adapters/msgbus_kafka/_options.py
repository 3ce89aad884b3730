"""The URL's options, and what they mean to the client library."""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka.abc import AbstractTokenProvider

from msgbus.adapter import AdapterConfig, BusURL, parse_options
from msgbus.errors import ConfigError

__all__ = ["Options", "connection_arguments", "read_options"]

_PORT = 9092


@dataclass(frozen=True, slots=True)
class Options:
    """What ``kafka://host:port?option=value`` understands.

    Attributes:
        tls: Encrypt the connection; the scheme ``kafkas`` says the same.
        cafile: The authorities to trust (PEM) instead of the system's.
        certfile: The client's certificate (PEM), where the broker asks for one.
        keyfile: Its private key, when it is not in *certfile*.
        check_hostname: Whether the broker's certificate must name the host.
        sasl: How to log in; with a user name in the URL the default is ``plain``.
        token: ``module:function`` of an ``async def`` that returns a token for ``oauthbearer``; called for each
            connection.
        partitions: Partitions of the topics that are created; the broker's default when unset.
        replication: Their replicas; the broker's default when unset.
        retry_partitions: Partitions of a subscription's retry topics (keyed channels: as many as the channel has).
        compression: How batches are compressed.
        idempotence: Let the broker drop repeated writes of one producer; off only for brokers that cannot.
        delivery_timeout: Seconds after which an unconfirmed publish is given up as unknown.
        session_timeout: Seconds after which the group takes the partitions of a process that is silent.
        rebalance_drain: Seconds that running handlers get to finish before a rebalance takes their partitions.
        max_body: The largest body in bytes; raise it together with the broker's ``message.max.bytes``.
    """

    tls: bool = False
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    check_hostname: bool = True
    sasl: Literal["plain", "scram-sha-256", "scram-sha-512", "oauthbearer"] | None = None
    token: str | None = None
    partitions: int | None = None
    replication: int | None = None
    retry_partitions: int = 1
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    idempotence: bool = True
    delivery_timeout: float = 60.0
    session_timeout: float = 10.0
    rebalance_drain: float = 3.0
    max_body: int = 960 * 1024

    def __post_init__(self) -> None:
        for name in ("partitions", "replication", "retry_partitions", "max_body"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("delivery_timeout", "session_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds, got {getattr(self, name)}")
        if not 0 <= self.rebalance_drain <= 20:
            raise ValueError(f"rebalance_drain must be 0 to 20 seconds, got {self.rebalance_drain}")
        if self.sasl == "oauthbearer" and not self.token:
            raise ValueError("sasl=oauthbearer needs token=module:function")


def read_options(url: BusURL) -> Options:
    """Return the URL's options.

    Raises:
        ConfigError: One is unknown or does not fit, or the URL has a path.
    """
    if url.path.strip("/"):
        raise ConfigError(f"{url.scheme}:// takes no path, got {url.path!r}; use a namespace instead")
    return parse_options(url, Options)


def connection_arguments(url: BusURL, options: Options, config: AdapterConfig) -> dict[str, Any]:
    """Return the keyword arguments that every aiokafka client takes."""
    tls = options.tls or url.scheme == "kafkas"
    sasl = options.sasl or ("plain" if url.username else None)
    arguments: dict[str, Any] = {
        "bootstrap_servers": [_server(host, port) for host, port in url.hosts] or [f"localhost:{_PORT}"],
        "client_id": f"{config.service}-{config.instance}",
        "security_protocol": ("SASL_" if sasl else "") + ("SSL" if tls else "PLAINTEXT"),
        "ssl_context": _ssl_context(options) if tls else None,
    }
    if sasl == "oauthbearer":
        arguments["sasl_mechanism"] = "OAUTHBEARER"
        arguments["sasl_oauth_token_provider"] = _TokenProvider(_load(options.token or ""))
    elif sasl:
        if url.username is None or url.password is None:
            raise ConfigError(f"{url}: sasl={sasl} needs a user name and a password: {url.scheme}://user:password@host")
        arguments["sasl_mechanism"] = sasl.upper()
        arguments["sasl_plain_username"] = url.username
        arguments["sasl_plain_password"] = url.password
    return arguments


def _server(host: str, port: int | None) -> str:
    return f"[{host}]:{port or _PORT}" if ":" in host else f"{host}:{port or _PORT}"


def _ssl_context(options: Options) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.cafile)
        if options.certfile:
            context.load_cert_chain(options.certfile, options.keyfile)
    except OSError as exc:
        raise ConfigError(f"the TLS files cannot be loaded: {exc}") from exc
    context.check_hostname = options.check_hostname
    return context


def _load(path: str) -> Callable[[], Awaitable[str]]:
    module, colon, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(f"the token option names a function as module:function, and it does not load: {exc}") from exc
    if not asyncio.iscoroutinefunction(function):
        raise ConfigError("the token option must name an async function that returns a token, as module:function")
    return function


class _TokenProvider(AbstractTokenProvider):  # type: ignore[misc] # the base class has no types
    def __init__(self, function: Callable[[], Awaitable[str]]) -> None:
        self._function = function

    async def token(self) -> str:
        return await self._function()
