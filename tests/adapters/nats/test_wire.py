"""Names, headers, options and errors: what needs no server."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats import errors as client_errors
from nats.aio.client import Client

from msgbus.adapter import Address, BusURL, Kind, Source, parse_options
from msgbus.errors import (
    AccessDenied,
    BrokerUnavailable,
    ChannelError,
    ConfigError,
    MessageTooLarge,
    PublishRejected,
    Unroutable,
    UnsupportedFeature,
)
from msgbus_nats._errors import ApiError, Busy, refused, translate
from msgbus_nats._headers import decode_headers, encode_headers, parse_headers
from msgbus_nats._names import Names, partition_of, token
from msgbus_nats._options import NatsOptions
from msgbus_nats._topology import _covers

WORDS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=12)
NAMES = st.lists(WORDS, min_size=1, max_size=4).map(".".join)
VALUES = st.text(st.characters(codec="utf-8"), max_size=40)


@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_headers_arrive_as_they_were(headers):
    assert decode_headers(parse_headers(encode_headers(headers))) == headers


@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_plain_clients_read_the_same(headers):
    block = encode_headers(headers)[len(b"NATS/1.0\r\n") :]

    assert decode_headers(Client._parse_header_lines(block)) == headers


@given(st.text(string.ascii_letters + string.digits + string.punctuation, min_size=1, max_size=40))
def test_ordinary_values_stay_readable(value):
    block = encode_headers({"name": value})

    assert block == f"NATS/1.0\r\nname: {value}\r\n\r\n".encode() or value.startswith("%pct:")


def test_no_headers_are_no_block():
    assert encode_headers({}) == b""


def test_half_surrogates_survive_too():
    headers = {"x": "\ud800 broken"}

    assert decode_headers(parse_headers(encode_headers(headers))) == headers


@pytest.mark.parametrize("name", ["", "with space", "ümlaut", "a:b", "line\r\nbreak"])
def test_names_that_nats_cannot_carry_are_refused(name):
    with pytest.raises(ValueError, match="cannot carry a header named"):
        encode_headers({name: "x"})


def test_names_that_instruct_the_server_are_refused():
    with pytest.raises(ValueError, match="'Nats-Rollup' is NATS's own"):
        encode_headers({"Nats-Rollup": "all"})


def test_what_the_server_adds_is_not_shown():
    assert decode_headers({"Nats-Msg-Id": "1", "mine": "2"}) == {"mine": "2"}
    assert decode_headers(None) == {}


@given(NAMES, NAMES, st.sampled_from(list(Kind)[:3]), st.booleans())
def test_no_two_addresses_meet(one, other, kind, keyed):
    names = Names("p", 4)
    keyed = keyed and kind is not Kind.REQUEST
    first, second = names.place(Address(kind, one, keyed)), names.place(Address(kind, other, keyed))

    assert (first.subject == second.subject) == (one == other)
    assert names.channel(first.subject.replace("{}", "3")) == one
    if kind is Kind.QUEUE:
        assert (first.stream == second.stream) == (one == other)


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_two_groups_meet(name, group, other_name, other_group):
    names = Names("p", 4)
    one = Source(Address(Kind.TOPIC, name), group)
    other = Source(Address(Kind.TOPIC, other_name), other_group)

    assert (names.consumer(one) == names.consumer(other)) == (one == other)
    assert (names.source_id(one) == names.source_id(other)) == (one == other)


@given(NAMES)
def test_names_of_consumers_and_streams_are_legal(name):
    assert not set(token(name)) & set(" .*>/\\\t\r\n")


def test_patterns_and_channels_have_different_consumers():
    names = Names("p", 4)
    patterns = ["order.*", "order.#", "order.x", "order"]

    assert len({names.consumer(Source(Address(Kind.TOPIC, p), "g")) for p in patterns}) == 4


@given(st.text(min_size=1), st.integers(1, 64))
def test_a_key_has_one_partition(key, partitions):
    assert 0 <= partition_of(key, partitions) < partitions
    assert partition_of("customer-1", 8) == 5  # stays what it was in every earlier release


@pytest.mark.parametrize(
    ("kind", "native", "says"),
    [
        (Kind.QUEUE, {"strem": "x"}, "'strem' is unknown; nats knows stream, subject"),
        (Kind.QUEUE, {"stream": 3}, "'stream' takes a name without spaces and wildcards, got 3"),
        (Kind.QUEUE, {"stream": "S", "subject": "a b"}, "'subject' takes a name without"),
        (Kind.QUEUE, {"stream": "S", "subject": "a.>"}, "'subject' takes a name without"),
        (Kind.QUEUE, {"declare": "no"}, "'declare' takes a bool"),
        (Kind.QUEUE, {"stream": "S"}, "go together"),
        (Kind.TOPIC, {"partitions": 3}, "belongs into the URL"),
    ],
)
def test_native_options_that_make_no_sense_are_refused(kind, native, says):
    with pytest.raises(ChannelError, match=says):
        Names("p", 4).place(Address(kind, "x", native=native))


def test_an_earlier_attempt_that_is_not_decided_yet_is_tried_again():
    error = {"code": 409, "err_code": 10158, "description": "duplicate message id is in process"}

    assert refused(error, "orders", 1, 100).retryable


def test_a_queue_is_never_on_core_nats():
    with pytest.raises(UnsupportedFeature, match="durable=False"):
        Names("p", 4).place(Address(Kind.QUEUE, "x", native={"durable": False}))


def test_names_too_long_for_the_server_are_refused():
    with pytest.raises(ChannelError, match="at most 255"):
        Names("p", 4).consumer(Source(Address(Kind.TOPIC, ".".join("*" * 60)), "g" * 120))


@pytest.mark.parametrize(
    ("pattern", "subject", "covered"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.b", "a.*", False),
        ("a.*", "a.>", False),
        ("*.b", "a.b.c", False),
        ("a.*.c", "a.*.c", True),
        (">", "a.>", True),
    ],
)
def test_coverage_of_subjects(pattern, subject, covered):
    assert _covers(pattern, subject) is covered


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("prefix=a.b", "prefix takes"),
        ("domain=a b", "domain takes"),
        ("inbox=a..b", "inbox takes"),
        ("partitions=0", "partitions takes 1 to 64"),
        ("replicas=2", "replicas takes 1, 3 or 5"),
        ("timeout=0", "timeout must be over 0 s"),
        ("token=a&nkey=b", "one of token, nkey and creds"),
        ("tls_cert=x", "go together"),
        ("storage=tape", "one of file, memory"),
        ("retries=3", "no option 'retries'"),
    ],
)
def test_wrong_options_are_named(query, says):
    with pytest.raises(ConfigError, match=says):
        parse_options(BusURL.parse(f"nats://localhost?{query}"), NatsOptions)


def test_secrets_are_never_shown():
    url = BusURL.parse("nats://me:hush@localhost?token=hush&nkey=/run/hush.nk")

    assert "hush" not in str(url)


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (client_errors.AuthorizationError(), AccessDenied),
        (client_errors.Error("nats: 'Authorization Violation'"), AccessDenied),
        (client_errors.Error("nats: 'User Authentication Expired'"), AccessDenied),
        (client_errors.Error("nats: 'Maximum Connections Exceeded'"), BrokerUnavailable),
        (client_errors.NoServersError(), BrokerUnavailable),
        (client_errors.TimeoutError(), BrokerUnavailable),
        (ConnectionRefusedError(111, "refused"), BrokerUnavailable),
        (ApiError("X", {"code": 400}), ApiError),
    ],
)
def test_client_errors_become_ours(cause, expected):
    assert type(translate(cause, "testing")) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": 400, "err_code": 10054}, MessageTooLarge),
        ({"code": 404, "err_code": 10059}, Unroutable),
        ({"code": 503, "err_code": 10077, "description": "maximum messages exceeded"}, PublishRejected),
        ({"code": 503, "err_code": 10008}, Busy),
        ({"code": 429, "err_code": 10167}, Busy),
    ],
)
def test_refusals_become_ours(error, expected):
    assert type(refused(error, "s", 10, 5)) is expected
