"""Headers on the wire: NATS trims values, cannot carry line breaks, and keeps ``Nats-`` for itself.

Values that NATS would change travel percent-encoded behind a marker; all others, as good as all, travel as they are
and can be read by any client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

__all__ = ["decode_headers", "encode_headers", "parse_block", "wire_size"]

RESERVED = "Nats-"
"""Headers under this prefix instruct the server, or come from it."""
_MARK = "%pct:"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_READABLE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


def encode_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* as they go over the wire.

    Raises:
        ValueError: A name cannot be carried; says which and why.
    """
    wire: dict[str, str] = {}
    for name, value in headers.items():
        if not _NAME.match(name):
            raise ValueError(f"NATS cannot carry a header named {name!r}: use letters, digits and !#$%&'*+-.^_`|~")
        if name.startswith(RESERVED):
            raise ValueError(f"the header name {name!r} is NATS's own: names must not begin with {RESERVED!r}")
        wire[name] = value if _survives(value) else _MARK + quote(value, safe=_READABLE.strip(), errors="surrogatepass")
    return wire


def decode_headers(wire: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers that were published, without those of the server."""
    if not wire:
        return {}
    return {
        name: unquote(value[len(_MARK) :], errors="surrogatepass") if value.startswith(_MARK) else value
        for name, value in wire.items()
        if not name.startswith(RESERVED)
    }


def parse_block(block: bytes) -> dict[str, str]:
    """Parse a raw header block (``NATS/1.0``, lines, an empty line), as administrative answers contain it."""
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        name, separator, value = line.partition(b":")
        if separator:
            headers[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return headers


def wire_size(wire: Mapping[str, str]) -> int:
    """Return how many bytes *wire* headers have, as the server counts them toward its maximum payload."""
    return 12 + sum(len(name) + len(value.encode(errors="surrogatepass")) + 4 for name, value in wire.items())


def _survives(value: str) -> bool:
    if value.isascii() and value.isprintable():  # the common case, fast
        return value[:1] != " " and value[-1:] != " " and not value.startswith(_MARK)
    return (
        value.strip() == value
        and not any(c < " " or "\ud800" <= c <= "\udfff" for c in value)
        and not value.startswith(_MARK)
    )
