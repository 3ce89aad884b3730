from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from msgbus import Queue, RequestReply, Topic
from msgbus.errors import ChannelError, DecodeError, EncodeError
from tests.core.support import Order


@dataclass
class Point:
    x: int
    y: int


class Row(TypedDict):
    name: str
    size: int


class Shipped(BaseModel):
    order: str


class Cancelled(BaseModel):
    __msgbus_type__ = "order.cancelled"
    order: str


def roundtrip(payload_type: Any, payload: Any) -> Any:
    channel: Queue[Any] = Queue("q", payload_type)
    name, body = channel.encode(payload)
    return channel.decoders[name](body)


@pytest.mark.parametrize(
    ("payload_type", "payload"),
    [
        (Order, Order(id="1")),
        (Point, Point(1, 2)),
        (Row, {"name": "a", "size": 3}),
        (dict, {"a": [1, None, "ä"]}),
        (list[int], [1, 2]),
        (str, "grüße"),
        (str, ""),
        (bytes, b"\x00\xff"),
        (bytes, b""),
    ],
)
def test_payloads_come_back_as_they_were(payload_type: Any, payload: Any) -> None:
    """Models, dataclasses, TypedDicts, dicts, text and bytes survive encoding."""
    assert roundtrip(payload_type, payload) == payload


def test_the_body_is_the_payload_itself() -> None:
    """Any client can read what we publish: plain JSON, text or bytes without an envelope."""
    assert Queue("q", Order).encode(Order(id="1")) == ("Order", b'{"id":"1","customer":"ann","total":1.0}')
    assert Queue("q", str).encode("hi") == ("q", b"hi")
    assert Queue("q").encode({"a": 1}) == ("q", b'{"a":1}')
    assert Queue("q", Order).codec.content_type == "application/json"


@pytest.mark.parametrize(
    ("payload_type", "payload"),
    [
        (Order, {"id": "1"}),
        (Order, None),
        (Point, Point("a", 2)),  # type: ignore[arg-type]
        (Row, {"name": "a"}),
        (dict, [1]),
        (dict, {"a": object()}),
        (str, b"x"),
        (str, "\ud800"),
        (bytes, "x"),
        (list[int], ["a"]),
    ],
)
def test_payloads_that_do_not_fit_are_refused(payload_type: Any, payload: Any) -> None:
    """A payload of another type, or one whose parts do not fit, never reaches the broker."""
    with pytest.raises(EncodeError, match="Queue"):
        Queue("q", payload_type).encode(payload)


@pytest.mark.parametrize(
    ("payload_type", "body"),
    [
        (Order, b""),
        (Order, b"{"),
        (Order, b'{"id": 1}'),
        (Point, b'{"x":1}'),
        (dict, b"[]"),
        (str, b"\xff"),
        (Row, b"7"),
    ],
)
def test_bodies_that_do_not_fit_are_told_from_others(payload_type: Any, body: bytes) -> None:
    """What cannot be decoded is a DecodeError that does not repeat the body's values."""
    channel: Queue[Any] = Queue("q", payload_type)
    decode = next(iter(channel.decoders.values()))

    with pytest.raises(DecodeError):
        decode(body)


def test_decode_errors_keep_values_to_themselves() -> None:
    """The text of a decode error says where and what, never the value: it may be a secret, and it is logged."""
    with pytest.raises(DecodeError, match=r"total: Input should be a valid number") as caught:
        Queue("q", Order).decoders["Order"](b'{"id": "1", "total": "hunter2"}')

    assert "hunter2" not in str(caught.value)


def test_a_union_is_told_apart_by_type_name() -> None:
    """A channel of several types writes and reads each by its name."""
    channel = Topic("orders", Shipped | Cancelled)

    assert channel.encode(Shipped(order="1")) == ("Shipped", b'{"order":"1"}')
    assert channel.encode(Cancelled(order="1"))[0] == "order.cancelled"
    assert channel.decoders["order.cancelled"](b'{"order":"1"}') == Cancelled(order="1")
    with pytest.raises(EncodeError, match=r"carries Shipped, order\.cancelled, got Order"):
        channel.encode(Order(id="1"))


def test_subclasses_are_sent_as_their_declared_type() -> None:
    """A subclass of a union's member goes by the member's name."""

    class Express(Shipped):
        hours: int = 1

    assert Topic("orders", Shipped | Cancelled).encode(Express(order="1"))[0] == "Shipped"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Queue("a b"), "not usable on every broker"),
        (lambda: Queue("order.*"), "not usable"),
        (lambda: Topic("a.#.b"), "not usable"),
        (lambda: Queue("q", object()), "cannot be a payload type"),
        (lambda: Queue("q", Order | str), "own channels"),
        (lambda: Queue("q", Order, key="nope"), "no attribute 'nope'"),
        (lambda: Queue("q", Point, key="z"), "no attribute 'z'"),
        (lambda: Queue("q", str, key="z"), "no attribute 'z'"),
        (lambda: Queue("q", Order, key=7), "key= takes"),
        (lambda: Queue("q", Order | list[int]), "must be of classes"),
    ],
)
def test_bad_channels_are_refused_when_they_are_made(make: Any, said: str) -> None:
    """What cannot work is refused at the definition, by name."""
    with pytest.raises(ChannelError, match=said):
        make()


def test_types_of_one_name_need_a_name_of_their_own() -> None:
    """Two classes of the same name on one channel would be mixed up."""
    other = type("Shipped", (BaseModel,), {"__annotations__": {"x": int}})

    with pytest.raises(ChannelError, match="__msgbus_type__"):
        Topic("orders", Shipped | other)


def test_bad_type_names_are_refused() -> None:
    """A type name travels in a header and must fit one."""

    class Odd(BaseModel):
        __msgbus_type__ = "a\nb"

    with pytest.raises(ChannelError, match="printable ASCII"):
        Queue("q", Odd)


def test_keys_come_from_the_payload() -> None:
    """key= names an attribute or item, or is a function."""
    by_attribute = Queue("q", Order, key="customer").key_of
    by_item = Queue("q", dict, key="id").key_of
    by_function = Queue("q", Order, key=lambda order: order.id).key_of

    assert by_attribute is not None and by_attribute(Order(id="1", customer="bob")) == "bob"
    assert by_item is not None and by_item({"id": 7}) == "7"
    assert by_function is not None and by_function(Order(id="1")) == "1"
    with pytest.raises(EncodeError, match="no 'id'"):
        by_item({})


def test_request_reply_has_two_types() -> None:
    """Requests and answers have codecs of their own."""
    price = RequestReply("price", Order, str)

    assert price.encode_reply("9.90") == b"9.90"
    assert price.decode_reply(b"9.90") == "9.90"
    assert repr(price) == "RequestReply('price')"


def test_addresses_carry_the_namespace_and_native_options() -> None:
    """A namespace is put before the name; native options reach the adapter."""
    address = Queue("orders", Order, key="id", native={"queue_type": "classic"}).address("prod")

    assert str(address) == "queue 'prod.orders'"
    assert address.keyed
    assert dict(address.native) == {"queue_type": "classic"}
