"""What a ``postgresql:`` URL may say."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from psycopg.conninfo import make_conninfo

from msgbus.store import AdapterConfig, BusURL

__all__ = ["Options", "conninfo"]

_OWN = {"timeout", "pool_size", "prepare"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The URL's query parameters.

    Attributes:
        timeout: Seconds a call may take before the store counts as unreachable.
        pool_size: The most connections a process opens.
        prepare: Prepare statements at the server.
        sslmode: libpq's: disable, allow, prefer, require, verify-ca or verify-full.
        sslrootcert: Path of the certificates to trust.
        sslcert: Path of the client's certificate.
        sslkey: Path of its private key.
        target_session_attrs: Which of several hosts will do, for example ``read-write``.
        application_name: How the connections are called in ``pg_stat_activity``; the bus's service by default.
        options: Settings of the session, for example ``-csearch_path=infra``.
    """

    timeout: float = 5.0
    pool_size: int = 4
    prepare: bool = True
    sslmode: str | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    target_session_attrs: str | None = None
    application_name: str | None = None
    options: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.timeout < 3_600:
            raise ValueError(f"timeout takes more than 0 and less than 3600 seconds, got {self.timeout:g}")
        if not 1 <= self.pool_size <= 1_000:
            raise ValueError(f"pool_size takes 1 to 1000 connections, got {self.pool_size}")


def conninfo(url: BusURL, options: Options, config: AdapterConfig) -> str:
    """Return libpq's connection string; it contains the password."""
    given = {name: value for name, value in asdict(options).items() if name not in _OWN and value is not None}
    if url.hosts:
        given["host"] = ",".join(host for host, _ in url.hosts)
        given["port"] = ",".join(str(port or "") for _, port in url.hosts)
    if database := url.path.strip("/"):
        given["dbname"] = database
    return make_conninfo(
        user=url.username,
        password=url.password,
        **{
            "application_name": config.service,
            "connect_timeout": str(max(2, round(config.connect_timeout))),  # libpq knows whole seconds, from 2
            **given,
        },
    )
