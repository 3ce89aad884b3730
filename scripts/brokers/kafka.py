"""Apache Kafka itself: one KRaft node that is broker and controller, its jars resolved by Maven into a cache."""

from __future__ import annotations

import struct
from typing import ClassVar

from msgbus.testing.faults import FaultProxy
from scripts.brokers._broker import Launch, run_step
from scripts.brokers._java import JavaBroker
from scripts.brokers._net import HOST, accepts, exchange, free_ports

__all__ = ["Kafka"]

_CLUSTER = "bXNnYnVzLXRlc3QtMDAwMA"  # any 16 bytes in base64
_API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # size, ApiVersions v0, correlation 1, no client id


class Kafka(JavaBroker):
    """A single Kafka node: topics have four partitions by default and are never made by accident."""

    name = "kafka"
    artifacts = (
        # 4.4.0 asks for an artifact that Maven Central does not have (kafka-tools-api of the same version).
        "org.apache.kafka:kafka_2.13:4.3.1",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",  # without it the server logs nothing
    )
    heap = "512m"
    start_timeout = 180.0  # seconds; after a SIGKILL on a busy machine it reads its logs again
    extra: ClassVar[tuple[str, ...]] = ()
    """Names of listeners that a subclass adds; `ports` has their ports."""

    def __init__(self) -> None:
        super().__init__()
        # Clients go where the broker tells them to: those that come through a proxy have to be told the proxy's port.
        ports = free_ports(4 + len(self.extra))
        self.port, self._controller_port, self._behind_proxy_port, self._proxy_port, *more = ports
        self.ports = dict(zip(self.extra, more, strict=True))
        self.url = f"kafka://{HOST}:{self.port}"

    def proxy(self) -> FaultProxy:
        """Return a fault proxy in front of the broker, one at a time: its port is known to the broker beforehand."""
        return FaultProxy(HOST, self._behind_proxy_port, listen_port=self._proxy_port)

    def _prepare(self) -> None:
        (self.folder / "server.properties").write_text(self._properties())
        (self.folder / "log4j2.properties").write_text(_LOG4J)
        format_storage = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", f"{self.folder}/server.properties"]
        run_step(self._java(*format_storage))

    def _launch(self) -> Launch:
        log4j = f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties"
        return Launch(self._java(log4j, "kafka.Kafka", str(self.folder / "server.properties")))

    def _ready(self) -> bool:
        # Its sockets open long before it serves: the request is answered once the broker is registered and unfenced.
        if exchange(self.port, _API_VERSIONS, 10)[4:10] != b"\x00\x00\x00\x01\x00\x00":
            return False
        # Its listeners open one after the other, in any order.
        return all(accepts(port) for port in (self._behind_proxy_port, *self.ports.values()))

    def _properties(self) -> str:
        return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{HOST}:{self._controller_port}
listeners=PLAIN://{HOST}:{self.port},PROXIED://{HOST}:{self._behind_proxy_port},CONTROLLER://{HOST}:{self._controller_port}
advertised.listeners=PLAIN://{HOST}:{self.port},PROXIED://{HOST}:{self._proxy_port}
inter.broker.listener.name=PLAIN
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,PROXIED:PLAINTEXT
log.dirs={self.folder}/data
num.partitions=4
auto.create.topics.enable=false
# One node: whatever Kafka keeps for itself has one replica, and few partitions, so that it is there sooner.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
# A group's first member starts at once instead of waiting for others.
group.initial.rebalance.delay.ms=0
# Clients may ask for short sessions, so that a killed consumer's partitions move within a test's patience.
group.min.session.timeout.ms=1000
# After a SIGKILL the node has to wait until its former self has expired: nine seconds by default.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
"""


_LOG4J = """\
status=ERROR
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %c: %m%n
rootLogger.level=INFO
rootLogger.appenderRef.console.ref=console
"""
