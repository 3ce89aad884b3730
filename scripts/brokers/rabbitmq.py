"""RabbitMQ from Debian's package: a node of its own with its own ports, data, cookie and port mapper."""

from __future__ import annotations

import shutil
from pathlib import Path

from scripts.brokers._broker import Broker, Launch, run_step
from scripts.brokers._install import apt_install
from scripts.brokers._net import HOST, exchange, free_ports

__all__ = ["RabbitMQ"]

# Not /usr/sbin/rabbitmq-server: that wrapper insists on the account `rabbitmq` and its folders.
_BIN = Path("/usr/lib/rabbitmq/bin")
_HANDSHAKE = b"AMQP\x00\x00\x09\x01"


class RabbitMQ(Broker):
    """A single RabbitMQ node with quorum queues and streams, without plugins; ``guest`` may connect."""

    name = "rabbitmq"
    start_timeout = 180.0  # five seconds on a quiet machine, and a minute on one that twenty others use

    def __init__(self) -> None:
        super().__init__()
        self.port, self._dist_port, self._epmd_port = free_ports(3)
        self.url = f"amqp://guest:guest@{HOST}:{self.port}/"
        self._node = f"msgbus{self.port}@localhost"

    @classmethod
    def _missing(cls) -> str | None:
        found = (_BIN / "rabbitmq-server").exists() and shutil.which("epmd")
        return None if found else "rabbitmq-server not found: apt-get install rabbitmq-server"

    @classmethod
    def _install(cls) -> None:
        apt_install(cls.name, "rabbitmq-server")

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` against this node (about a second) and return what it printed.

        Raises:
            BrokerError: It failed; the text shows its output.
        """
        return run_step([str(_BIN / "rabbitmqctl"), "--node", self._node, *arguments], env=self._env(), timeout=60)

    def raise_memory_alarm(self) -> None:
        """Make the node block every publishing connection, as when its memory is full."""
        self.ctl("set_vm_memory_high_watermark", "0.00001")

    def clear_memory_alarm(self) -> None:
        """Let publishers go on."""
        self.ctl("set_vm_memory_high_watermark", "0.4")

    def _prepare(self) -> None:
        (self.folder / "rabbitmq.conf").write_text(
            f"""\
listeners.tcp.local = {HOST}:{self.port}
distribution.listener.interface = {HOST}
log.console = true
log.console.level = info
log.file = false
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 50MB
"""
        )
        # A queue that dead-letters at least once asks again after this time when its target was not there to answer,
        # as may happen while the node starts. Three minutes by default, which is when delayed messages would come.
        (self.folder / "advanced.config").write_text(
            "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 3000}]}].\n"
        )
        (self.folder / "enabled_plugins").write_text("[].\n")
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(f"MSGBUS{self.port}{self._dist_port}")
        cookie.chmod(0o400)

    def _launch(self) -> Launch:
        # The port mapper as a plain child: left to itself, the node would start a daemon that outlives it.
        script = 'epmd -port "$ERL_EPMD_PORT" & exec "$0"'
        return Launch(["sh", "-c", script, str(_BIN / "rabbitmq-server")], env=self._env())

    def _ready(self) -> bool:
        return exchange(self.port, _HANDSHAKE, 1) == b"\x01"  # a method frame: Connection.Start

    def _env(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RUNNING_UNDER_SYSTEMD": "true",  # the script then turns into the node, and SIGTERM reaches it
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-code_path_choice strict",  # fewer look-ups: most of a second
            # RabbitMQ ties each of its schedulers to a core of its own. Whoever shares the cores then waits behind one
            # while the core beside it idles: unbound, the kernel places them where there is room.
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
        }
