"""What all fuzz tests draw from."""

from __future__ import annotations

from hypothesis import strategies as st

from msgbus import _message

__all__ = ["HEADERS", "TEXTS", "bodies"]

OWN_NAMES = sorted(
    value for value in vars(_message).values() if isinstance(value, str) and value.startswith(("ce-", "msgbus-"))
)
NASTY = [
    "", " ", "\x00", "\r\nX: y", "a\r\nPUB evil 0\r\n\r\n", "'; DROP TABLE msgbus_message; --", "*", ">", "#", "../..",
    "-1", "0", "9" * 400, "٣", "²", "nan", "inf", "1e999", "null", "[]", "{}", "[" * 100_000, '{"a":' * 50_000,
    '{"reason": [1], "attempts": "x", "detail": {}, "traceback": 7}', '{"type": 1, "detail": []}',
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "2026-01-01\n00:00", "%pct:%ff%0d%0a", "=",
    "%s%n", "\ud7ff\U0010ffff", "\x85\u2028", "NaN", "true",
]  # fmt: skip

TEXTS = st.one_of(st.text(max_size=60), st.sampled_from(NASTY))
HEADERS = st.dictionaries(st.one_of(st.sampled_from(OWN_NAMES), TEXTS), TEXTS, max_size=6)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.just("\ud800")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=10,
)


def bodies() -> st.SearchStrategy[bytes]:
    """Return bodies: any bytes, and JSON of any shape."""
    import json

    return st.one_of(
        st.binary(max_size=200), TEXTS.map(str.encode), _JSON.map(lambda value: json.dumps(value).encode())
    )
