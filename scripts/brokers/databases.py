"""Redis and PostgreSQL from Debian's packages: for the idempotency, scheduler and outbox stores."""

from __future__ import annotations

import os
import shutil
import signal
import struct
from pathlib import Path

from scripts.brokers._broker import Broker, Launch, run_step
from scripts.brokers._install import apt_install
from scripts.brokers._net import HOST, exchange, free_port

__all__ = ["Postgres", "Redis"]


class Redis(Broker):
    """One Redis server that appends every write to a file."""

    name = "redis"

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.url = f"redis://{HOST}:{self.port}/0"

    @classmethod
    def _missing(cls) -> str | None:
        return None if shutil.which("redis-server") else "redis-server not found: apt-get install redis-server"

    @classmethod
    def _install(cls) -> None:
        apt_install(cls.name, "redis-server")

    def _prepare(self) -> None:
        return

    def _launch(self) -> Launch:
        where = ["--bind", HOST, "--port", str(self.port), "--dir", str(self.folder)]
        # Written before it is answered (SIGKILL loses nothing); flushed to the disk each second.
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        return Launch(["redis-server", *where, *durable])

    def _ready(self) -> bool:
        return exchange(self.port, b"PING\r\n", 16).startswith(b"+PONG")


class Postgres(Broker):
    """One PostgreSQL cluster; the account ``postgres`` needs no password."""

    name = "postgres"
    stop_signal = signal.SIGINT  # its "fast" shutdown: SIGTERM would wait for clients to leave

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.url = f"postgresql://postgres@{HOST}:{self.port}/postgres"

    @classmethod
    def _missing(cls) -> str | None:
        return None if _postgres_bin() else "initdb not found: apt-get install postgresql"

    @classmethod
    def _install(cls) -> None:
        apt_install(cls.name, "postgresql")

    def _prepare(self) -> None:
        if user := _user():
            shutil.chown(self.folder, user, user)
        command = [self._program("initdb"), "--pgdata", str(self.folder / "data"), "--username", "postgres"]
        # Nothing to survive but our own SIGKILL, which the page cache outlives: flushing it now is wasted time.
        command += ["--auth", "trust", "--no-sync", "--no-instructions", "--encoding", "UTF8", "--locale", "C"]
        run_step(command, user=_user(), cwd=self.folder)

    def _launch(self) -> Launch:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # in its folder: what it has in /dev/shm outlives a SIGKILL
            "max_connections": "50",
        }
        options = [f"-c{name}={value}" for name, value in settings.items()]
        return Launch([self._program("postgres"), "-D", str(self.folder / "data"), *options], user=_user())

    def _ready(self) -> bool:
        body = struct.pack(">i", 3 << 16) + b"user\x00postgres\x00database\x00postgres\x00\x00"
        return exchange(self.port, struct.pack(">i", len(body) + 4) + body, 1) == b"R"  # authentication, not an error

    def _program(self, name: str) -> str:
        folder = _postgres_bin()
        assert folder is not None, "checked when it was made"
        return str(folder / name)


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


def _postgres_bin() -> Path | None:
    """Debian keeps the server out of PATH, a folder per version: take the newest."""
    if (initdb := shutil.which("initdb")) is not None:
        return Path(initdb).parent
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    return max(found, key=lambda path: float(path.parent.name), default=None)
