"""What a ``redis:`` URL may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgbus.errors import ConfigError
from msgbus.store import BusURL

__all__ = ["Options", "address"]

_PORT = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The URL's query parameters.

    Attributes:
        prefix: Begins every key.
        timeout: Seconds a call may take before the store counts as unreachable.
        tls_ca: Path of the certificates to trust instead of the system's (``rediss:`` only).
        tls_cert: Path of the client's certificate.
        tls_key: Path of its private key.
    """

    prefix: str = "msgbus"
    timeout: float = 5.0
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        if not self.prefix:
            raise ValueError("prefix must not be empty")
        if not 0 < self.timeout < 3_600:
            raise ValueError(f"timeout takes more than 0 and less than 3600 seconds, got {self.timeout:g}")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key go together")


def address(url: BusURL, options: Options) -> dict[str, Any]:
    """Return where the server is, and how to log in, as arguments of the client.

    Raises:
        ConfigError: The URL names no single host, or no database, or mixes ``redis:`` with options for TLS.
    """
    if len(url.hosts) != 1:
        raise ConfigError(f"{url} must name one host: redis://localhost:6379/0")
    database = url.path.strip("/") or "0"
    if not database.isdecimal():
        raise ConfigError(f"{url}: the path is the database's number, for example /0")
    host, port = url.hosts[0]
    found: dict[str, Any] = {"host": host, "port": port or _PORT, "db": int(database)}
    found |= {"username": url.username, "password": url.password}
    if url.scheme == "rediss":
        files = {"ssl_ca_certs": options.tls_ca, "ssl_certfile": options.tls_cert, "ssl_keyfile": options.tls_key}
        found |= {"ssl": True, **{name: path for name, path in files.items() if path}}
    elif options.tls_ca or options.tls_cert:
        raise ConfigError(f"{url} has options for TLS: write rediss:// instead of redis://")
    return found
