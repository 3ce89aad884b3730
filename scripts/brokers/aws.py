"""Four implementations of SQS, three of them with SNS, so that we fit the API and not one emulator; and DynamoDB.

| name      | speaks   | keeps data over restart  | over SIGKILL | notes                                      |
| --------- | -------- | ------------------------ | ------------ | ------------------------------------------ |
| elasticmq | SQS      | yes (H2)                 | yes          | strict limits, a JVM                       |
| ministack | SQS SNS  | yes                      | no           | keeps what it had at its last orderly end  |
| fauxqs    | SQS SNS  | no                       | no           | in Node.js; has S3, too                    |
| moto      | SQS SNS  | no                       | no           | in memory; has DynamoDB and S3, too        |
| dynamodb  | DynamoDB | no                       | no           | AWS's own, a JVM; conditions are atomic    |

None of them checks credentials, but clients refuse to work without any: set ``AWS_ACCESS_KEY_ID`` and
``AWS_SECRET_ACCESS_KEY`` to whatever you like.
"""

from __future__ import annotations

import platform
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

from scripts.brokers._broker import Broker, Launch
from scripts.brokers._install import cache_folder, node, npm_install, pip_install, pip_missing
from scripts.brokers._java import JavaBroker
from scripts.brokers._net import HOST, free_port, http_status

__all__ = ["DynamoDBLocal", "ElasticMQ", "FauxQS", "MiniStack", "Moto"]


class _Emulator(Broker):
    """What they have in common: one HTTP port, and a URL with region and endpoint."""

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

    def __init__(self) -> None:
        super().__init__()
        self._had_queues = False

    def stop(self) -> None:
        """See `Broker.stop`."""
        self._had_queues = self._had_queues or self._has_queues()
        super().stop()

    def kill(self) -> None:
        """See `Broker.kill`."""
        self._had_queues = self._had_queues or self._has_queues()
        super().kill()

    def _ready(self) -> bool:
        # It serves before it has its queues back, all at once, and until then says that they do not exist.
        return super()._ready() and (self._has_queues() or not self._had_queues)

    def _has_queues(self) -> bool:
        try:
            with urlopen(f"{self.endpoint}/?Action=ListQueues", timeout=5) as answer:
                return b"<QueueUrl>" in answer.read()
        except (OSError, HTTPException):  # it does not run, or is paused
            return False

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


class DynamoDBLocal(JavaBroker, _Emulator):
    """AWS's own DynamoDB for tests, in memory. It listens on all interfaces and knows no other way."""

    name = "dynamodb"
    # The newest of which all that it depends on is published under the versions that it names.
    artifacts = ("software.amazon.dynamodb:DynamoDBLocal:3.1.0",)
    heap = "256m"

    def __init__(self) -> None:
        super().__init__()
        self.url = f"dynamodb://us-east-1/msgbus?endpoint={self.endpoint}"

    @classmethod
    def _missing(cls) -> str | None:
        if platform.machine() != "x86_64":
            return f"the SQLite that it brings runs on x86_64, this is {platform.machine()}"
        return super()._missing()

    def _launch(self) -> Launch:
        main = "software.amazon.dynamodb.services.local.main.ServerRunner"
        data = ["-sharedDb", "-inMemory", "-disableTelemetry"]
        return Launch(self._java(f"-Djava.library.path={self.jars()}", main, "-port", str(self.port), *data))


class MiniStack(_Emulator):
    """SQS and SNS in Python; of its many other services none is loaded.

    Attributes:
        guarded: Whether it checks permissions and queue policies, set before the start. Root has the credentials
            ``test`` and ``test`` then, and makes others by IAM.
    """

    name = "ministack"
    guarded = False
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
                "SERVICES": "sqs,sns,iam",
                "AUTH": str(self.guarded).lower(),
                "PERSIST_STATE": "1",
                "STATE_DIR": str(self.folder / "state"),
                "TMPDIR": str(self.folder),
            },
        )


class FauxQS(_Emulator):
    """SQS, SNS and S3 in TypeScript, in memory: with its SQLite file it loses every message that is given back."""

    name = "fauxqs"
    _package = "fauxqs@2.4.1"

    @classmethod
    def _folder(cls) -> Path:
        return cache_folder(cls._package.replace("@", "-"))

    @classmethod
    def _missing(cls) -> str | None:
        folder = cls._folder()
        return None if folder.is_dir() else f"not in {folder}: python -m scripts.brokers --install {cls.name}"

    @classmethod
    def _install(cls) -> None:
        npm_install(cls.name, cls._folder(), cls._package)

    def _launch(self) -> Launch:
        # It listens on all interfaces and has no option against it.
        loopback = f"""
            import net from "node:net";
            const listen = net.Server.prototype.listen;
            net.Server.prototype.listen = function (options, ...rest) {{
                return listen.call(this, {{...options, host: "{HOST}"}}, ...rest);
            }};
        """
        folder = self._folder()
        preload = f"--import=data:text/javascript,{quote(loopback)}"
        return Launch(
            [str(node(folder)), preload, str(folder / "node_modules/fauxqs/dist/cli.js")],
            env={"FAUXQS_PORT": str(self.port), "FAUXQS_HOST": HOST, "FAUXQS_LOGGER": "false"},
        )


class Moto(_Emulator):
    """SQS and SNS in Python as moto's server, the emulator that most projects test with; its requests take turns."""

    name = "moto"
    _requirements = ("moto~=5.2", "flask", "flask-cors")  # moto's own extra for its server brings forty packages more

    @classmethod
    def _missing(cls) -> str | None:
        return pip_missing(*cls._requirements)

    @classmethod
    def _install(cls) -> None:
        pip_install(cls.name, *cls._requirements)

    def _launch(self) -> Launch:
        return Launch([sys.executable, str(Path(__file__).with_name("moto_in_turn.py")), HOST, str(self.port)])
