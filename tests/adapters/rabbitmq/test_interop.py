"""Other clients' messages are received as they are meant, and other clients can read ours."""

from __future__ import annotations

import secrets
import struct
from datetime import UTC, datetime
from urllib.parse import urlsplit

import kombu
import pika
import pytest

from msgbus.adapter import Ack, Address, DeadLetter, Kind, Nack, Source, Topology
from msgbus.errors import ConfigError, PublishRejected
from msgbus_rabbitmq._message import read_headers
from tests.adapters.rabbitmq.conftest import PATIENCE, receive, subscribe, take


@pytest.fixture
def channel(broker):
    """Return a pika channel."""
    parts = urlsplit(broker.url)
    credentials = pika.PlainCredentials(parts.username, parts.password)
    parameters = pika.ConnectionParameters(parts.hostname, parts.port, "/", credentials)
    parameters.socket_timeout = parameters.stack_timeout = PATIENCE
    with pika.BlockingConnection(parameters) as connection:
        yield connection.channel()


async def test_a_body_over_our_own_limit_can_be_moved(rig, channel):
    """What somebody else published is in the queue already, and must be able to wait or to be a dead letter."""
    source = rig.queue()
    async with rig.adapter(source, options="?max_body=1000") as adapter:
        channel.basic_publish("", source.address.name, bytes(2000))
        channel.basic_publish("", source.address.name, bytes(2000))
        subscription = await subscribe(adapter, source)
        first, second = await receive(subscription, 2)

        assert await subscription.settle([DeadLetter(first, {}), Nack(second, delay=0.1)]) == [None, None]
        assert [m.body for m in await receive(subscription, 1)] == [bytes(2000)]
        assert (await adapter.stats(source)).dead == 1


async def test_pika_to_msgbus(rig, channel):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        properties = pika.BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            headers={
                "text": "t",
                "number": 7,
                "flag": True,
                "raw": b"\xff",
                "list": [1, 2],
                "none": None,
                "map": {"a": 1},
            },
            delivery_mode=2,
            priority=3,
            correlation_id="c",
            reply_to="r",
            expiration="60000",
            message_id="m",
            timestamp=1_700_000_000,
            type="Order",
            user_id="guest",
            app_id="shop",
            cluster_id="x",
        )
        channel.basic_publish("", source.address.name, b"{}", properties)

        (message,) = await receive(await subscribe(adapter, source), 1)

        assert {
            "content-type": "application/json",
            "text": "t",
            "number": "7",
            "flag": "true",
            "raw": "\ufffd",
            "list": "[1, 2]",
            "none": "",
            "map": '{"a": 1}',
            "ce-correlationid": "c",
            "msgbus-reply-to": "r",
            "ce-id": "m",
            "ce-time": datetime.fromtimestamp(1_700_000_000, UTC).isoformat(),
            "ce-type": "Order",
            "ce-source": "shop",
        } == message.headers
        assert message.raw.priority == 3
        assert message.raw.properties["expiration"] == "60000"
        assert source.address.name == message.raw.delivery_info["routing_key"]


async def test_a_message_without_any_property(rig, channel):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        channel.basic_publish("", source.address.name, b"\xff\x00")

        (message,) = await receive(await subscribe(adapter, source), 1)

        assert (message.headers, message.body, message.deliveries) == ({}, b"\xff\x00", 1)


async def test_msgbus_to_pika(rig, channel):
    source = rig.queue(native={"priority": 5, "expiration": 60_000})
    async with rig.adapter(source) as adapter:
        outgoing = rig.message(source, "a")
        outgoing.headers.update({"ce-correlationid": "c", "msgbus-reply-to": "r", "ce-source": "s", "x": "y"})
        outgoing.headers["ce-time"] = "2026-01-02T03:04:05Z"
        assert await adapter.publish([outgoing]) == [None]

        _, properties, body = channel.basic_get(source.address.name, auto_ack=True)

        assert body == b"a"
        assert (
            properties.content_type,
            properties.message_id,
            properties.type,
            properties.app_id,
            properties.correlation_id,
            properties.reply_to,
            properties.priority,
            properties.expiration,
            properties.delivery_mode,
        ) == ("text/plain", "id-a", "Text", "s", "c", "r", 5, "60000", 2)
        assert {"ce-specversion", "ce-time", "x", "x-delivery-count"} == set(properties.headers)
        assert properties.timestamp > 1_700_000_000


async def test_kombu_both_ways(rig):
    source = rig.queue()
    async with rig.adapter(source) as adapter:
        with kombu.Connection(rig.broker.url) as connection:
            connection.Producer().publish({"total": 1}, routing_key=source.address.name, headers={"h": "v"})
            subscription = await subscribe(adapter, source)
            (message,) = await receive(subscription, 1)
            assert message.body == b'{"total": 1}'
            assert {"content-type": "application/json", "h": "v"}.items() <= message.headers.items()
            await subscription.settle([Ack(message)])
            await subscription.aclose()

            await rig.publish(adapter, source, "ours")
            with connection.SimpleQueue(kombu.Queue(source.address.name, no_declare=True)) as queue:
                ours = queue.get(timeout=10)
                ours.ack()
            assert (ours.body, ours.properties["message_id"]) == (b"ours", "id-ours")


async def test_raw_is_a_kombu_connection(rig):
    async with rig.adapter() as adapter:
        assert isinstance(adapter.raw, kombu.Connection)
        assert adapter.raw.connection.server_properties["product"] == "RabbitMQ"


async def test_an_existing_topology_is_joined_without_declaring(rig, channel):
    exchange, queue, dead = rig.name("x"), rig.name("existing"), rig.name("dead")
    channel.exchange_declare(exchange, "direct")  # not even durable
    channel.queue_declare(queue, arguments={"x-max-length": 10})
    channel.queue_bind(queue, exchange, "the.key")
    native = {"exchange": exchange, "routing_key": "the.key", "queue": queue, "dead_letters": dead, "declare": False}
    source = Source(Address(Kind.QUEUE, "orders", native=native))
    async with rig.adapter(source) as adapter:
        await rig.publish(adapter, source, "a")
        subscription = await subscribe(adapter, source)
        (message,) = await receive(subscription, 1)
        await subscription.settle([Nack(message, delay=0.1, headers=message.headers)])
        (message,) = await receive(subscription, 1)
        await subscription.settle([DeadLetter(message, message.headers)])

        assert await take(await subscribe(adapter, source.dead_letters), 1) == ["a"]
        await rig.publish(adapter, source, "delayed", delay=0.1)
        assert await take(subscription, 1) == ["delayed"]


async def test_bindings_of_ones_own(rig, channel):
    exchange = rig.name("x")
    native = {"exchange": exchange, "exchange_type": "topic", "routing_key": ["order.*.created", "audit.#"]}
    source = Source(Address(Kind.TOPIC, "orders", native=native), rig.name("g"))
    async with rig.adapter(source) as adapter:
        for key in ("order.eu.created", "order.eu.deleted", "audit"):
            channel.basic_publish(exchange, key, key.encode())

        got = await receive(await subscribe(adapter, source), 2)

        assert [message.channel for message in got] == ["order.eu.created", "audit"]


async def test_an_unknown_native_option_is_refused_by_name(rig):
    good, bad = rig.queue(), rig.queue(native={"queue_typo": "classic"})
    async with rig.adapter(good) as adapter:
        with pytest.raises(ConfigError, match="queue_typo"):
            await adapter.declare(Topology((bad.address,)))
        results = await adapter.publish([rig.message(good, "a"), rig.message(bad, "b"), rig.message(good, "c")])

        assert [error and type(error) for error in results] == [None, PublishRejected, None]
        assert "queue_typo" in str(results[1])


def test_a_header_table_that_cannot_be_read_costs_its_headers_only():
    milliseconds = 1_700_000_000_000_000
    table = b"\x04whenT" + milliseconds.to_bytes(8, "big")
    header = struct.pack(">HHQHI", 60, 0, 0, 0x2080, len(table)) + table + b"\x02id"

    assert read_headers(header) == ({"ce-id": "id"}, {})


async def test_priorities(rig):
    native = {"queue_type": "classic", "arguments": {"x-max-priority": 10}}
    low = Address(Kind.QUEUE, rig.name(), native=native)
    high = Address(Kind.QUEUE, low.name, native={**native, "priority": 9})
    async with rig.adapter(Source(low)) as adapter:
        assert (
            await adapter.publish([rig.message(a, t) for a, t in ((low, "1"), (low, "2"), (high, "3"))]) == [None] * 3
        )

        assert await take(await subscribe(adapter, Source(low)), 3) == ["3", "1", "2"]


async def test_replies_and_requests(rig):
    request = Address(Kind.REQUEST, rig.name())
    reply = Source(Address(Kind.REPLY, f"reply-{secrets.token_hex(4)}"))
    async with rig.adapter(Source(request)) as adapter:
        replies = await subscribe(adapter, reply)
        asking = rig.message(request, "ask")
        asking.headers["msgbus-reply-to"] = replies.address
        await adapter.publish([asking])
        serving = await subscribe(adapter, Source(request))
        (got,) = await receive(serving, 1)
        await adapter.publish([rig.message(Address(Kind.REPLY, got.headers["msgbus-reply-to"]), "answer")])
        assert await take(replies, 1) == ["answer"]
        await adapter.stats(Source(request))  # a round trip: the ack is there

        adapter._consuming.require().abort(ConnectionResetError("cut"))
        answer = rig.message(Address(Kind.REPLY, replies.address), "meanwhile")
        assert await adapter.publish([answer]) == [None]
        assert await take(replies, 1) == ["meanwhile"]

        await replies.aclose()
        (error,) = await adapter.publish([answer])
        assert "NO_ROUTE" in str(error)
