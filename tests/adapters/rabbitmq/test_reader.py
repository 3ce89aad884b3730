"""Headers that are read by their form are what they are when read one by one; without a broker."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from msgbus_rabbitmq import _reader
from msgbus_rabbitmq._message import CHANNEL, PARTITION, encode_content, read_headers
from msgbus_rabbitmq._reader import Reader

_NAMES = ["ce-id", "ce-type", "ce-source", "ce-time", "content-type", "ce-correlationid", "msgbus-reply-to"]
_MORE = ["ce-specversion", "traceparent", "a", "b", CHANNEL, PARTITION]
_VALUES = st.text("ab%\0", max_size=4) | st.text("aé€𝄞", max_size=3) | st.just("x" * 256)
_HEADERS = st.dictionaries(st.sampled_from([*_NAMES, *_MORE]), _VALUES, max_size=8)


def _encode(headers: dict[str, str], time: int = 0, *, persistent: bool = True) -> bytes:
    return encode_content(headers, 5, timestamp=time, persistent=persistent)


@given(st.lists(st.tuples(_HEADERS, st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
@example([({"a": "x", "b": "yz"}, 0, True), ({"a": "xy", "b": "z"}, 0, True), ({"a": "x", "b": "yz"}, 0, True)])
@example([({"ce-id": "é", "a": "x"}, 0, True), ({"ce-id": "ab", "a": "x"}, 0, True)])
@example([({"ce-id": "ab", CHANNEL: "c"}, 0, True), ({"ce-id": "ab", CHANNEL: "d"}, 0, True)])
def test_whatever_comes_is_read_as_one_by_one(messages):
    read = Reader()
    for headers, time, persistent in [*messages, *messages]:
        content = _encode(headers, time, persistent=persistent)
        found, own = read(content)
        assert (found, own) == read_headers(content)
        assert list(found) == list(read_headers(content)[0])
        found["more"] = ""  # whoever got it may change it


def test_messages_of_one_form_are_taken_apart_once(monkeypatch):
    read = Reader()
    template = {"ce-id": "1", "ce-time": "2026-11-21T12:00:00.000Z", "ce-specversion": "1.0", "ce-type": "Order"}
    assert read(_encode(template, 1)) == (template, {})
    monkeypatch.setattr(_reader, "read_headers", None)
    for number in range(2, 10):
        headers = {**template, "ce-id": str(number), "ce-specversion": f"1.{number}"}
        assert read(_encode(headers, number)) == (headers, {})


def test_only_so_many_forms_are_remembered(monkeypatch):
    monkeypatch.setattr(_reader, "_MOST", 3)
    read = Reader()
    for size in range(10):
        read(_encode({"a": "x" * size, "b": ""}))
    assert len(read._forms) == 3
