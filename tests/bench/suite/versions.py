"""What the brokers say of their versions."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

__all__ = ["version_of"]


def version_of(broker: str, url: str) -> str:
    """Return the running broker's name and version, as far as it tells."""
    if broker == "rabbitmq":
        import kombu

        with kombu.Connection(url) as connection:
            properties = connection.connection.server_properties
        return f"{properties['product']} {properties['version']}, quorum queues, one node"
    if broker == "nats":
        return f"nats-server {asyncio.run(_nats(url))}, JetStream, file storage, one node"
    if broker == "kafka":
        from scripts.brokers import broker_class

        return f"{broker_class(broker).__name__}, one node, six partitions"
    if broker == "aws":
        return f"ministack {version('ministack')} (an emulator of SQS in Python, which is most of what is measured)"
    return broker


async def _nats(url: str) -> str:
    import nats

    client = await nats.connect(url)
    try:
        found = client.connected_server_version
        return f"{found.major}.{found.minor}.{found.patch}"
    finally:
        await client.close()
