"""Headers as one text: a line with all the names, then a line for each value, or JSON where that cannot be.

Nearly all headers are printable ASCII, and nearly all messages of a process have the same names in the same order, so
that a line of names is put together, or taken apart, once. This takes a fifth of JSON's time, which is the largest
single cost of publishing.
"""

from __future__ import annotations

import json
from functools import lru_cache

__all__ = ["dump_headers", "load_headers"]

# JSON in ASCII: the only form in which SQLite stores any text Python can hold, half a surrogate pair too.
_dump_json = json.JSONEncoder(separators=(",", ":")).encode
_BETWEEN = "\x1f"
"""Between two names: ASCII's unit separator."""


def dump_headers(headers: dict[str, str]) -> str:
    """Return *headers* as text."""
    names = _join(tuple(headers))
    text = "\n".join((names, *headers.values()))
    if names and text.count("\n") == len(headers) and text.isascii():
        return text
    return _dump_json(headers)


def load_headers(text: str) -> dict[str, str]:
    """Return the headers that `dump_headers` made *text* of."""
    if text[0] == "{":
        headers: dict[str, str] = json.loads(text)
        return headers
    names, *values = text.split("\n")
    return dict(zip(_split(names), values, strict=True))


@lru_cache(maxsize=1000)
def _join(names: tuple[str, ...]) -> str:
    """Return the line of names; an empty one if they do not fit into one."""
    line = _BETWEEN.join(names)
    return "" if line.startswith("{") or line.count(_BETWEEN) != len(names) - 1 else line


@lru_cache(maxsize=1000)
def _split(names: str) -> tuple[str, ...]:
    return tuple(names.split(_BETWEEN))
