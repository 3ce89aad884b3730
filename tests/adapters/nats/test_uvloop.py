"""`msgbus run` takes uvloop where it is installed: its transports raise where asyncio's do not."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from msgbus.adapter import Source
from msgbus.errors import BrokerUnavailable
from msgbus_nats._client import frame
from tests.adapters.nats.load import consume_all, publish_all


async def lose(client):
    """Lose the connection; nats-py will hear of it in the next turn of the event loop."""
    transport = client._transport._io_writer.transport
    transport.abort()
    await asyncio.sleep(0)
    assert client.is_connected
    with pytest.raises(RuntimeError, match="the handler is closed"):
        transport.write(b"")


@pytest.mark.parametrize("doing", ["receiving", "writing at once", "writing soon"])
def test_a_connection_that_was_closed_a_moment_ago_is_an_outage(kit, doing):
    unhandled = []

    async def body():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source)
            client = adapter._link.client
            await adapter._link.sync()
            await lose(client)
            if doing == "receiving":
                with pytest.raises(BrokerUnavailable):
                    await subscription.receive(1, 20)
            else:
                client.write(frame("x", b""), now=doing == "writing at once")
            await kit.until(lambda: adapter._link.client not in (None, client) and adapter.health.ok)
            await publish_all(kit, adapter, [kit.message(queue, "x")])
            assert await consume_all(kit, subscription, ["x"]) == {"x": 1}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(body(), 60))
    assert unhandled == []


def test_other_runtime_errors_are_told(kit, monkeypatch):
    """Only those of a connection that is gone are expected."""

    def fail(_):
        raise RuntimeError("a bug")

    async def body():
        async with kit.adapter() as adapter:
            client = adapter._link.client
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a bug"):
                patch.setattr(client._transport, "writelines", fail)
                client.write(frame("x", b""), now=True)

    kit.run(body())
