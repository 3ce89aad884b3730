from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgbus import Message
from msgbus._message import check_headers, format_time, new_id, parse_time
from msgbus.errors import EncodeError

texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
times = st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1), max_value=datetime(9998, 1, 1))  # noqa: DTZ001


@given(
    st.builds(
        Message,
        id=st.text("abc", min_size=1),
        body=st.binary(max_size=20),
        type=texts,
        source=texts,
        time=st.none() | times,
        content_type=texts,
        key=st.none() | texts,
        headers=st.dictionaries(st.from_regex(r"x-[a-z]{1,8}", fullmatch=True), texts, max_size=4),
        correlation_id=st.none() | texts,
        causation_id=st.none() | texts,
        reply_to=st.none() | texts,
        expires=st.none() | times,
    )
)
def test_metadata_survives_the_wire(message: Message) -> None:
    """What is written to headers is read back from them."""
    assert Message.from_wire(message.body, message.to_wire()) == message


def test_a_foreign_message_needs_no_header() -> None:
    """A message of somebody who knows nothing of us has its body, and nothing is invented."""
    message = Message.from_wire(b"hello", {})

    assert message == Message(id="", body=b"hello")
    assert dict(message.headers) == {}


def test_foreign_headers_are_the_applications() -> None:
    """Headers that are not ours come through; ours are not among the application's."""
    message = Message.from_wire(
        b"", {"X-Foreign": "1", "ce-id": "7", "msgbus-attempts": "2", "traceparent": "00-a-b-01"}
    )

    assert dict(message.headers) == {"X-Foreign": "1", "traceparent": "00-a-b-01"}
    with pytest.raises(TypeError):
        message.headers["x"] = "y"  # type: ignore[index]


@pytest.mark.parametrize("text", [None, "", "yesterday", "2026-13-01", "1763690000"])
def test_times_that_are_none_are_ignored(text: str | None) -> None:
    """A foreign producer's odd time is no time."""
    assert parse_time(text) is None


def test_times_are_utc() -> None:
    """Times are written in UTC and read with their zone; a time without one is taken for UTC."""
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))

    assert format_time(noon) == "2026-01-01T10:00:00.000000Z"
    assert parse_time(format_time(noon)) == noon
    assert parse_time("2026-01-01T10:00:00") == noon


@pytest.mark.parametrize("headers", [{"x": "é ß 漢"}, {"a.b-c_D": ""}, {"traceparent": "00-1-2-01"}, {"x" * 128: "y"}])
def test_ordinary_headers_pass(headers: dict[str, str]) -> None:
    """Token names and printable values are carried as they are."""
    assert check_headers(headers) == headers


@pytest.mark.parametrize(
    "headers",
    [
        {"": "x"},
        {"a b": "x"},
        {"a:b": "x"},
        {"ä": "x"},
        {"x" * 129: "y"},
        {"ce-id": "1"},
        {"CE-ID": "1"},
        {"msgbus-attempts": "1"},
        {"Content-Type": "x"},
        {"x": "a\r\nb"},
        {"x": "\x00"},
        {"x": "\x7f"},
        {"x": "\ud800"},
        {"x": 1},
        {1: "x"},
    ],
)
def test_headers_that_some_broker_cannot_carry_are_refused(headers: dict[str, str]) -> None:
    """A header that would be changed, lost or dangerous somewhere is refused by name."""
    with pytest.raises(EncodeError, match="header"):
        check_headers(headers)


def test_ids_are_unique() -> None:
    """Ids are 128 random bits."""
    assert len({new_id() for _ in range(10_000)}) == 10_000
    assert len(new_id()) == 32


def test_a_forked_process_draws_ids_of_its_own() -> None:
    """Ids are drawn many at a time; a child must not use up its parent's."""
    code = (
        "import os, sys; from msgbus._message import new_id; new_id(); child = os.fork(); "
        "sys.stdout.write(' '.join(new_id() for _ in range(300)) + ' '); sys.stdout.flush(); "
        "child and os.waitpid(child, 0)"
    )
    ids = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert len(ids) == len(set(ids)) == 600
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
