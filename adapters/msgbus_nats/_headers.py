"""Headers on the wire: NATS trims values, cannot carry line breaks, and keeps ``Nats-`` for itself.

Values that NATS would change travel percent-encoded behind a marker; all others, as good as all, travel as they are
and can be read by any client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, unquote

__all__ = ["carried", "decode_headers", "encode_headers", "parse_headers"]

RESERVED = "Nats-"
"""Headers under this prefix instruct the server, or come from it."""
_FIRST_LINE = "NATS/1.0\r\n"
_MARK = "%pct:"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_READABLE = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_TRIMMED = " \t\r\n\x0b\x0c"


def encode_headers(headers: Mapping[str, str], instructions: Mapping[str, str] | None = None) -> bytes:
    """Return the header block that goes over the wire; empty if there are no headers.

    Args:
        headers: A message's headers.
        instructions: Headers for the server.

    Raises:
        ValueError: A name cannot be carried; says which and why.
    """
    form = _form(tuple(headers), tuple(instructions) if instructions else ())
    values = (*headers.values(), *instructions.values()) if instructions else tuple(headers.values())
    block: str = form % values
    text = "".join(values)
    if not (text.isascii() and text.isprintable()) or _MARK in text or _has_blank_ends(block):
        block = form % tuple(map(_encoded, values))
    return block.encode()


@lru_cache(maxsize=1024)
def _form(names: tuple[str, ...], instructions: tuple[str, ...]) -> str:
    """Return the block of these headers with ``%s`` for each value; applications use few sets of names."""
    for name in names:
        if not _NAME.match(name):
            raise ValueError(f"NATS cannot carry a header named {name!r}: use letters, digits and !#$%&'*+-.^_`|~")
        if name.startswith(RESERVED):
            raise ValueError(f"the header name {name!r} is NATS's own: names must not begin with {RESERVED!r}")
    lines = [f"{name.replace('%', '%%')}: %s\r\n" for name in names + instructions]
    return f"{_FIRST_LINE}{''.join(lines)}\r\n" if lines else ""


def carried(headers: Mapping[str, str]) -> dict[str, str]:
    """Return those of a received message's headers that can be sent on; foreign clients write any name."""
    return {name: value for name, value in headers.items() if _NAME.match(name) and not name.startswith(RESERVED)}


def decode_headers(wire: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers that were published, without those of the server."""
    if not wire:
        return {}
    return {
        name: value if value[:5] != _MARK else unquote(value[5:], errors="surrogatepass")
        for name, value in wire.items()
        if name[:5] != RESERVED
    }


def parse_headers(block: bytes) -> dict[str, str]:
    """Parse a header block; its first line is passed over."""
    text = block.decode("utf-8", "replace")
    lines = text.split("\r\n")[1:-2]
    if not (_has_blank_ends(text) or "\t" in text or "\x0b" in text or "\x0c" in text):
        try:
            return dict([line.split(": ", 1) for line in lines])
        except ValueError:
            pass  # some line has no space after its colon, or no colon
    headers: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if separator:
            headers[name.strip()] = value.strip(_TRIMMED)
    return headers


def _has_blank_ends(block: str) -> bool:
    """Tell whether a value in the block may begin or end with a space, or be empty."""
    return ":  " in block or " \r\n" in block


def _encoded(value: str) -> str:
    survives = (
        value.strip() == value
        and not any(c < " " or "\ud800" <= c <= "\udfff" for c in value)
        and not value.startswith(_MARK)
    )
    return value if survives else _MARK + quote(value, safe=_READABLE, errors="surrogatepass")
