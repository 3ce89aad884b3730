"""Headers as one text: a line for each name and each value in turn, or JSON where that cannot be.

Nearly all headers are ASCII without line breaks, and for those this takes a quarter of JSON's time, which is the
largest single cost of publishing.
"""

from __future__ import annotations

import json
from itertools import chain

__all__ = ["dump_headers", "load_headers"]

# JSON in ASCII: the only form in which SQLite stores any text Python can hold, half a surrogate pair too.
_dump_json = json.JSONEncoder(separators=(",", ":")).encode


def dump_headers(headers: dict[str, str]) -> str:
    """Return *headers* as text."""
    text = "\n".join(chain.from_iterable(headers.items()))
    if text.count("\n") == 2 * len(headers) - 1 and text.isascii() and text[0] != "{":
        return text
    return _dump_json(headers)


def load_headers(text: str) -> dict[str, str]:
    """Return the headers that `dump_headers` made *text* of."""
    if text[0] == "{":
        headers: dict[str, str] = json.loads(text)
        return headers
    lines = text.split("\n")
    return dict(zip(lines[::2], lines[1::2], strict=True))
