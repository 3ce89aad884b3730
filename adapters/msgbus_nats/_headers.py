"""Headers on the wire: NATS trims values, cannot carry line breaks, and keeps ``Nats-`` for itself.

Values that NATS would change travel percent-encoded behind a marker; all others, as good as all, travel as they are
and can be read by any client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, unquote

__all__ = ["decode_headers", "encode_headers", "parse_headers"]

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
    lines = [f"{_checked(name)}: {_encoded(value)}\r\n" for name, value in headers.items()]
    if instructions:
        lines += [f"{name}: {_encoded(value)}\r\n" for name, value in instructions.items()]
    return f"{_FIRST_LINE}{''.join(lines)}\r\n".encode() if lines else b""


def decode_headers(wire: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers that were published, without those of the server."""
    if not wire:
        return {}
    return {
        name: unquote(value[len(_MARK) :], errors="surrogatepass") if value.startswith(_MARK) else value
        for name, value in wire.items()
        if not name.startswith(RESERVED)
    }


def parse_headers(lines: bytes) -> dict[str, str]:
    """Parse header lines; the first line of a whole block is passed over."""
    headers: dict[str, str] = {}
    for line in lines.decode("utf-8", "replace").split("\r\n"):
        name, separator, value = line.partition(":")
        if separator:
            headers[name.strip()] = value.strip(_TRIMMED)
    return headers


@lru_cache(maxsize=1024)
def _checked(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError(f"NATS cannot carry a header named {name!r}: use letters, digits and !#$%&'*+-.^_`|~")
    if name.startswith(RESERVED):
        raise ValueError(f"the header name {name!r} is NATS's own: names must not begin with {RESERVED!r}")
    return name


def _encoded(value: str) -> str:
    if value.isascii() and value.isprintable():  # the common case, fast
        survives = value[:1] != " " and value[-1:] != " " and not value.startswith(_MARK)
    else:
        survives = (
            value.strip() == value
            and not any(c < " " or "\ud800" <= c <= "\udfff" for c in value)
            and not value.startswith(_MARK)
        )
    return value if survives else _MARK + quote(value, safe=_READABLE, errors="surrogatepass")
