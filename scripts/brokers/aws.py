"""Three implementations of SQS, two of them with SNS, so that we fit the API and not one emulator.

| name      | speaks  | keeps data over restart  | over SIGKILL | notes                                     |
| --------- | ------- | ------------------------ | ------------ | ----------------------------------------- |
| elasticmq | SQS     | yes (H2)                 | yes          | strict limits, a JVM                      |
| ministack | SQS SNS | yes                      | no           | keeps what it had at its last orderly end |
| moto      | SQS SNS | no                       | no           | in memory                                 |

None of them checks credentials, but clients refuse to work without any: set ``AWS_ACCESS_KEY_ID`` and
``AWS_SECRET_ACCESS_KEY`` to whatever you like.
"""

from __future__ import annotations

import sys

from scripts.brokers._broker import Broker, Launch
from scripts.brokers._install import pip_install, pip_missing
from scripts.brokers._java import JavaBroker
from scripts.brokers._net import HOST, free_port, http_status

__all__ = ["ElasticMQ", "MiniStack", "Moto"]


class _Emulator(Broker):
    """What the three have in common: one HTTP port, and a URL with region and endpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.endpoint = f"http://{HOST}:{self.port}"
        self.url = f"sqs://us-east-1?endpoint={self.endpoint}"

    def _prepare(self) -> None:
        return

    def _ready(self) -> bool:
        return http_status(self.port) is not None


class ElasticMQ(JavaBroker, _Emulator):
    """SQS in Scala, its queues and messages in an H2 file."""

    name = "elasticmq"
    artifacts = ("org.elasticmq:elasticmq-server_2.13:1.7.1",)
    heap = "256m"

    def _prepare(self) -> None:
        (self.folder / "elasticmq.conf").write_text(
            f"""\
include classpath("application.conf")
pekko.loglevel = "INFO"
node-address {{ host = "{HOST}", port = {self.port} }}
rest-sqs {{ bind-hostname = "{HOST}", bind-port = {self.port}, sqs-limits = strict }}
queues-storage {{ enabled = true, path = "{self.folder}/queues.conf" }}
messages-storage {{ enabled = true, uri = "jdbc:h2:{self.folder}/messages;WRITE_DELAY=0" }}
aws {{ region = "us-east-1", accountId = "000000000000" }}
"""
        )

    def _launch(self) -> Launch:
        config = f"-Dconfig.file={self.folder}/elasticmq.conf"
        return Launch(self._java(config, "org.elasticmq.server.Main"))


class MiniStack(_Emulator):
    """SQS and SNS in Python; of its many other services none is loaded."""

    name = "ministack"
    _requirements = ("ministack~=1.5",)

    @classmethod
    def _missing(cls) -> str | None:
        return pip_missing(*cls._requirements)

    @classmethod
    def _install(cls) -> None:
        pip_install(cls.name, *cls._requirements)

    def _launch(self) -> Launch:
        return Launch(
            [sys.executable, "-m", "ministack"],
            env={
                "BIND_HOST": HOST,
                "MINISTACK_HOST": HOST,  # what queue URLs name
                "GATEWAY_PORT": str(self.port),
                "SERVICES": "sqs,sns,dynamodb",
                "PERSIST_STATE": "1",
                "STATE_DIR": str(self.folder / "state"),
                "TMPDIR": str(self.folder),
            },
        )


class Moto(_Emulator):
    """SQS and SNS in Python as moto's server, the emulator that most projects test with."""

    name = "moto"
    _requirements = ("moto~=5.2", "flask", "flask-cors")  # moto's own extra for its server brings forty packages more

    @classmethod
    def _missing(cls) -> str | None:
        return pip_missing(*cls._requirements)

    @classmethod
    def _install(cls) -> None:
        pip_install(cls.name, *cls._requirements)

    def _launch(self) -> Launch:
        return Launch([sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)])
