"""The URL's options."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Literal

__all__ = ["NatsOptions"]

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,32}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsOptions:
    """What a ``nats://`` URL can say after its question mark.

    Attributes:
        prefix: The first word of every subject, and of every stream's name. Two prefixes share nothing.
        domain: The JetStream domain, for leaf nodes.
        replicas: Copies of each stream that is created; None leaves it to the server (1).
        storage: Where created streams are kept: ``file`` survives a restart of the server, ``memory`` does not.
        retention: Seconds a topic keeps its messages, read or not; 0 for ever. A group that is away for longer loses
            messages, a shorter time saves disk.
        dedupe_window: Seconds in which a created stream drops a second message with the same id.
        partitions: How many consumers can share a keyed channel at once. Fixed when its stream is created.
        double_ack: Wait until the server has processed each acknowledgement, not only read it. Halves throughput.
        timeout: Seconds to wait for the server's answer to a publish or an administrative request.
        inbox: Prefix of the subjects answers come to, for accounts that may not use ``_INBOX``.
        token: A token; also the URL's user name when there is no password.
        nkey: Path of a file with an nkey seed.
        creds: Path of a credentials file (JWT and nkey seed).
        tls: Use TLS, as ``tls://`` does.
        tls_ca: Path of the certificates to trust instead of the system's.
        tls_cert: Path of the client's certificate.
        tls_key: Path of its private key.
        tls_hostname: The name in the server's certificate if it is not the URL's host.
        tls_first: Begin with TLS instead of after the server's greeting (the server's ``handshake_first``).
    """

    prefix: str = "msgbus"
    domain: str | None = None
    replicas: int | None = None
    storage: Literal["file", "memory"] = "file"
    retention: float = 7 * 86_400.0
    dedupe_window: float = 120.0
    partitions: int = 8
    double_ack: bool = False
    timeout: float = 5.0
    inbox: str = "_INBOX"
    token: str | None = None
    nkey: str | None = None
    creds: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_hostname: str | None = None
    tls_first: bool = False

    def __post_init__(self) -> None:
        if not _TOKEN.match(self.prefix):
            raise ValueError(f"prefix takes 1 to 32 letters, digits, '_' and '-', got {self.prefix!r}")
        if self.domain is not None and not _TOKEN.match(self.domain):
            raise ValueError(f"domain takes 1 to 32 letters, digits, '_' and '-', got {self.domain!r}")
        if not all(map(_TOKEN.match, self.inbox.split("."))):
            raise ValueError(f"inbox takes words of letters, digits, '_' and '-' joined by dots, got {self.inbox!r}")
        if not 1 <= self.partitions <= 64:
            raise ValueError(f"partitions takes 1 to 64, got {self.partitions}")
        if self.replicas is not None and self.replicas not in (1, 3, 5):
            raise ValueError(f"replicas takes 1, 3 or 5, got {self.replicas}")
        if not (self.timeout > 0 and self.retention >= 0 and self.dedupe_window >= 0.1):
            raise ValueError("timeout must be over 0 s, retention 0 s or more, dedupe_window at least 0.1 s")
        if sum(x is not None for x in (self.token, self.nkey, self.creds)) > 1:
            raise ValueError("give one of token, nkey and creds")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key go together")

    @property
    def wants_tls(self) -> bool:
        """Whether any option asks for TLS."""
        return self.tls or self.tls_first or bool(self.tls_ca or self.tls_cert or self.tls_hostname)

    def ssl_context(self) -> ssl.SSLContext:
        """Return the context for TLS connections.

        Raises:
            OSError: A certificate file cannot be read (`ssl.SSLError` when it makes no sense).
        """
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_cert:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        return context
