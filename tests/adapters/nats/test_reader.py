"""Reading: messages are cut out of any pieces in which they come, and nothing else is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgbus_nats._headers import parse_headers
from msgbus_nats._reader import Reader


class Connection:
    """What a reader needs, written down in the order in which it happens."""

    def __init__(self):
        self.events = []
        self.behind = False
        self.reader = Reader(
            {b"1": self.take, b"23": self.take},
            arrived=lambda: None,
            pong=lambda: self.events.append("pong"),
            pass_on=lambda data: self.events.append(("nats-py", data)),
            is_behind=lambda: self.behind,
            failed=lambda exc: self.events.append(("failed", str(exc))),
        )
        self.reader.listen(b"in.box.", b"23", self.events.append)

    def take(self, subject, reply, headers, body):
        self.events.append((subject, reply, headers, body))


PLAIN = b"MSG a.b 1 5\r\nhello\r\n"
REPLY = b"MSG a.b 23 in.box 0\r\n\r\n"
HEADERS = b"HMSG a.b 1 12 17\r\nNATS/1.0\r\n\r\nhe\r\no\r\n"
BOTH = b"HMSG a.b 23 in.box 12 12\r\nNATS/1.0\r\n\r\n\r\n"
STRANGE = b"MSG a.b 4 3\r\n\r\n+\r\n"
STORED = b'MSG in.box.17 23 35\r\n{"stream":"a","seq":5,"domain":"d"}\r\n'
AGAIN = b'MSG in.box.18 23 39\r\n{"stream":"a","seq":5,"duplicate":true}\r\n'
INFO = b'INFO {"a": 1}\r\n'
WHAT = {
    PLAIN: (b"a.b", b"", b"", b"hello"),
    REPLY: (b"a.b", b"in.box", b"", b""),
    HEADERS: (b"a.b", b"", b"NATS/1.0\r\n\r\n", b"he\r\no"),
    BOTH: (b"a.b", b"in.box", b"NATS/1.0\r\n\r\n", b""),
    STRANGE: ("nats-py", STRANGE),
    STORED: 17,
    AGAIN: 18,
    INFO: ("nats-py", INFO),
    b"PONG\r\n": "pong",
    b"PING\r\n": ("nats-py", b"PING\r\n"),
    b"-ERR 'no'\r\n": ("nats-py", b"-ERR 'no'\r\n"),
}


@given(st.lists(st.sampled_from(list(WHAT)), max_size=8), st.lists(st.integers(1, 60), max_size=30))
def test_messages_come_whole_and_in_order(frames, sizes):
    connection, data = Connection(), b"".join(frames)
    for size in sizes:
        connection.reader.feed(data[:size]) if data else None
        data = data[size:]
    if data:
        connection.reader.feed(data)

    assert connection.events == [WHAT[frame] for frame in frames]


def test_a_large_body_comes_in_many_pieces():
    connection, body = Connection(), bytes(range(256)) * 4096
    data = b"MSG a 1 %d\r\n" % len(body) + body + b"\r\n" + PLAIN
    for start in range(0, len(data), 1000):
        connection.reader.feed(data[start : start + 1000])

    assert connection.events == [(b"a", b"", b"", body), WHAT[PLAIN]]


def test_nothing_is_read_before_nats_py_has_read_what_it_was_given():
    connection = Connection()
    connection.behind = True
    connection.reader.feed(PLAIN[:7])
    connection.reader.feed(PLAIN[7:])
    connection.behind = False
    connection.reader.feed(REPLY)

    assert connection.events == [("nats-py", PLAIN[:7]), ("nats-py", PLAIN[7:]), WHAT[REPLY]]


def test_a_pong_does_not_overtake_a_complaint():
    connection = Connection()
    connection.reader.feed(PLAIN)
    connection.behind = True
    connection.reader.feed(b"-ERR 'no'\r\nPONG\r\n")

    assert connection.events[1:] == [("nats-py", b"-ERR 'no'\r\n"), ("nats-py", b"PONG\r\n")]


@pytest.mark.parametrize("line", [b"MSG a 1 x\r\n", b"MSG a\r\n", b"HMSG a 1\r\n", b"Moo\r\n"])
def test_what_makes_no_sense_is_left_to_nats_py(line):
    connection = Connection()
    connection.reader.feed(PLAIN + line + PLAIN)
    connection.reader.feed(REPLY)

    assert connection.events == [WHAT[PLAIN], ("nats-py", line + PLAIN), ("nats-py", REPLY)]


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"", None),
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 404 No Messages\r\n\r\n", {"Status": "404", "Description": "No Messages"}),
        (b"NATS/1.0 100 Idle\r\nx: 1\r\n\r\n", {"Status": "100", "Description": "Idle", "x": "1"}),
        (b"NATS/1.0\r\nx:  1 \r\nno colon\r\ny:2\r\n\r\n", {"x": "1", "y": "2"}),
    ],
)
def test_header_blocks(block, headers):
    assert parse_headers(block) == headers


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"code":503,"description":"no"},"stream":"a","seq":0}',
        b'{"stream":"a","seq":1,"error":{}}',
        b'{"stream":"a", "seq":1}',
        b'{"stream":"a","seq":1}\r\nMSG in.box.2 23 22\r\n{"stream":"a","seq":1}',
        b'{"stream":"a","seq":1}\r\n',
        b"{}",
        b"",
    ],
)
def test_only_what_says_no_more_than_stored_goes_the_short_way(body):
    connection = Connection()
    connection.reader.feed(b"MSG in.box.1 23 %d\r\n%b\r\n" % (len(body), body) + PLAIN)

    assert connection.events == [(b"in.box.1", b"", b"", body), WHAT[PLAIN]]


def test_what_is_stored_elsewhere_goes_to_its_own_handler():
    connection, body = Connection(), b'{"stream":"a","seq":1}'
    frames = [b"MSG in.box.%b 23 22\r\n" % number for number in (b"x", b"", b"1.2", b"9" * 5000)]
    frames += [b"MSG in.box.1 1 22\r\n", b"MSG in-box.1 23 22\r\n"]
    for frame in frames:
        connection.reader.feed(frame + body + b"\r\n")

    assert connection.events == [(frame.split()[1], b"", b"", body) for frame in frames]


def test_a_handler_that_fails_stops_nobody():
    connection = Connection()

    def fail(*_):
        raise LookupError("bug")

    connection.reader.listen(b"in.box.", b"23", fail)
    connection.reader.feed(STORED + PLAIN)

    assert connection.events == [("failed", "bug"), WHAT[PLAIN]]
