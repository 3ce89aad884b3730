"""Messages that anybody may have sent: every one is handled or dead-lettered, and the consumer lives."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest
from amqp.serialization import _write_table
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from msgbus import Bus, Delivery, Idempotency, Message, Queue, RequestReply
from msgbus._codec import codec_for
from msgbus._failure import attempt_of, read_report
from msgbus.adapter import Outgoing, Received
from msgbus.errors import DecodeError
from msgbus.testing import TestBus
from msgbus_aws import _wire as aws
from msgbus_kafka import _wire as kafka
from msgbus_nats import _headers as nats
from msgbus_rabbitmq import _message as rabbitmq
from msgbus_sqlite import _headers as sqlite
from tests.fuzz.texts import HEADERS, NASTY, TEXTS, bodies

TYPES = (dict, list, int, float, str, bytes, bool)


class Order(BaseModel):
    id: str
    lines: list[int] = []


class Cancelled(BaseModel):
    id: str
    why: dict[str, float]


@dataclass
class Point:
    x: int


@given(bodies(), st.sampled_from([*TYPES, Order, Cancelled, Point, Order | Cancelled, list[Order]]))
def test_bodies_are_decoded_or_refused(body, payload_type):
    """Whatever the bytes: a payload, or DecodeError."""
    decode = codec_for(payload_type).decoder(payload_type)
    try:
        decode(body)
    except DecodeError as exc:
        assert "\n" not in str(exc)


@given(HEADERS, st.integers(0, 2**63))
def test_headers_are_read(headers, deliveries):
    """Whatever they say: a message, an attempt, a report whose fields are what they claim to be."""
    message = Message.from_wire(b"", headers)
    assert message.expires is None or message.expires.tzinfo
    message.to_wire()
    repr(message)

    assert attempt_of(Received(b"", headers, deliveries=deliveries)) >= max(1, deliveries)
    report = read_report(headers)
    assert isinstance(report.attempts, int)
    assert all(isinstance(value, str) for value in (report.reason, report.detail, report.traceback, report.last))


@settings(max_examples=30)
@given(st.lists(st.tuples(bodies(), HEADERS), max_size=8))
def test_a_consumer_outlives_its_messages(messages):
    """On plain, idempotent, union and request channels each is handled or a dead letter, what follows, too."""
    plain, once, either = Queue("plain", dict), Queue("once", str), Queue("either", Order | Cancelled)
    price = RequestReply("price", Order, Order)
    handled = []
    bus = Bus("memory://")

    @bus.on(plain)
    async def on_plain(payload: dict, message: Message, delivery: Delivery[dict]) -> None:
        handled.append((repr(delivery), message.to_wire()))

    @bus.on(once, idempotent=Idempotency())
    async def on_once(payload: str) -> None:
        handled.append(payload)

    @bus.on(either)
    async def on_either(payload: Order | Cancelled) -> None:
        handled.append(payload)

    @bus.on(price)
    async def quote(order: Order) -> Order:
        return order

    async def main():
        async with TestBus(bus) as t:
            for channel in (plain, once, either, price):
                connection, source = await bus._open.source(channel, None)
                for body, headers in messages:
                    await connection.adapter.publish([Outgoing(source.address, body, dict(headers), "")])
            await bus.send(plain, {"last": True})
            await t.drain()
            assert (await bus.stats(plain)).ready == 0
            dead = sum(len(t.dead_letters(channel)) for channel in (plain, once, either))
            assert len(handled) + dead >= 1
            assert await bus.request(price, Order(id="1"), timeout=5) == Order(id="1")

    asyncio.run(asyncio.wait_for(main(), 60))


NAMES = st.one_of(st.text(max_size=20), st.sampled_from([name for name in NASTY if len(name) < 100]))


@given(st.binary(max_size=300), st.text(max_size=100))
def test_nats_headers(block, name):
    """Any block becomes headers, and those can be published again, as a dead letter must be."""
    for raw in (block, b"NATS/1.0\r\n" + block + b"\r\n\r\n", f"NATS/1.0\r\n{name}: x\r\n\r\n".encode()):
        nats.encode_headers(nats.carried(nats.decode_headers(nats.parse_headers(raw))))


@given(st.dictionaries(NAMES.map(lambda n: n.encode()), TEXTS.map(str.encode) | st.binary(max_size=50), max_size=5))
def test_kafka_headers(headers):
    """Any bytes become text and the same bytes again."""
    read = kafka.from_headers([(name.decode(), value) for name, value in headers.items()])

    assert kafka.to_headers(read) == [(name.decode(), value) for name, value in headers.items()]


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        TEXTS,
        st.binary(max_size=20),
        st.just("\ud800"),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_rabbitmq_headers(table):
    """Any table becomes text headers, and those can be published again."""
    parts = bytearray()

    def write(piece):
        parts.extend(piece)

    try:
        _write_table(table, write, [])
    except Exception:
        return  # no client can send it either
    header = rabbitmq._HEADER.pack(60, 0, 0, 0x2000) + bytes(parts)

    headers, _ = rabbitmq.read_headers(header)
    rabbitmq.encode_content(headers, 0, timestamp=0, persistent=True)


ATTRIBUTES = st.fixed_dictionaries({"StringValue": TEXTS}) | st.fixed_dictionaries({"BinaryValue": st.binary()})


@given(
    st.dictionaries(st.sampled_from([aws.HEADERS, aws.ENCODING, aws.DUE]) | NAMES, ATTRIBUTES, max_size=4),
    TEXTS | bodies().map(lambda body: body.decode(errors="replace")),
    st.sampled_from(["", aws.BASE64]) | TEXTS,
    st.one_of(st.none(), st.fixed_dictionaries({}, optional=dict.fromkeys(("Message", "MessageAttributes"), VALUES))),
)
def test_sqs_messages(attributes, text, encoding, note):
    """Any attributes and any body become a message, and that can be sent again."""
    headers, _, _ = aws.decode_headers(attributes)
    if note is not None:
        text = json.dumps(
            {"Type": "Notification", "TopicArn": "", "MessageId": "", "Message": text} | note, default=str
        )
    body, inner = aws.open_body(text, encoding, attributes if note is None else {})
    aws.pack(aws.wrap(body), headers | inner)


@given(st.dictionaries(TEXTS, TEXTS, max_size=6))
def test_sqlite_headers(headers):
    """Any headers come back as they were."""
    assert sqlite.load_headers(sqlite.dump_headers(headers)) == headers


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000])
def test_depth_is_no_way_in(text):
    """JSON that is nested without end is refused like any other nonsense."""
    assert read_report({"msgbus-dead": text}).reason == "unknown"
