"""Headers on the wire: NATS trims values, cannot carry line breaks, and keeps ``Nats-`` for itself.

Values that NATS would change travel percent-encoded behind a marker; all others, as good as all, travel as they are
and can be read by any client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, unquote

__all__ = ["MESSAGE_ID", "carried", "decode_block", "decode_headers", "encode_headers", "parse_headers"]

RESERVED = "Nats-"
"""Headers under this prefix instruct the server, or come from it."""
MESSAGE_ID = "Nats-Msg-Id"
"""By which the server drops a second copy of a message."""
_VERSION = "NATS/1.0"
_MARK = "%pct:"
_RESERVED, _MARKED = RESERVED.encode(), _MARK.encode()
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
    if instructions:
        pieces = _form(tuple(headers), tuple(instructions)).copy()
        values = [*headers.values(), *instructions.values()]
    else:
        pieces, values = _form(tuple(headers), ()).copy(), list(headers.values())
    pieces[1::2] = values
    block, text = "".join(pieces), "".join(values)
    sound = text.isascii() and text.isprintable() and all(values)
    if not sound or _MARK in text or (" " in text and _has_blank_ends(block)):
        pieces[1::2] = map(_encoded, values)
        block = "".join(pieces)
    return block.encode()


@lru_cache(maxsize=1024)
def _form(names: tuple[str, ...], instructions: tuple[str, ...]) -> list[str]:
    """Return what is around the values of these headers, with a gap for each; applications use few sets of names."""
    for name in names:
        if not _NAME.match(name):
            raise ValueError(f"NATS cannot carry a header named {name!r}: use letters, digits and !#$%&'*+-.^_`|~")
        if name.startswith(RESERVED):
            raise ValueError(f"the header name {name!r} is NATS's own: names must not begin with {RESERVED!r}")
    pieces = [_VERSION]
    for name in names + instructions:
        pieces[-1] += f"\r\n{name}: "
        pieces += ["", ""]
    pieces[-1] += "\r\n\r\n"
    return pieces if names + instructions else [""]


def carried(headers: Mapping[str, str]) -> dict[str, str]:
    """Return those of a received message's headers that can be sent on; foreign clients write any name."""
    return {name: value for name, value in headers.items() if _NAME.match(name) and not name.startswith(RESERVED)}


def decode_headers(wire: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers that were published, without those of the server."""
    if not wire:
        return {}
    names, values = "\n".join(wire), "".join(wire.values())
    if _MARK not in values and names.count(RESERVED) == (MESSAGE_ID in wire):  # as nearly always
        headers = dict(wire)
        headers.pop(MESSAGE_ID, None)
        return headers
    return {
        name: value if value[:5] != _MARK else unquote(value[5:], errors="surrogatepass")
        for name, value in wire.items()
        if name[:5] != RESERVED
    }


def decode_block(block: bytes) -> dict[str, str]:
    """Return the headers that were published, from a header block."""
    if _RESERVED in block or _MARKED in block:
        return decode_headers(parse_headers(block))
    return parse_headers(block) or {}


def parse_headers(block: bytes) -> dict[str, str] | None:
    """Parse a header block as nats-py does: the server's status, if there is one, is shown as two headers."""
    if not block:
        return None
    text = block.decode("utf-8", "replace")
    first, *lines = text.removesuffix("\r\n\r\n").split("\r\n")
    headers: dict[str, str] = {}
    if first != _VERSION:
        status, _, description = first[len(_VERSION) :].strip().partition(" ")
        headers = {"Status": status, "Description": description} if description else {"Status": status}
    elif not (_has_blank_ends(text) or "\t" in text or "\x0b" in text or "\x0c" in text):
        try:
            return dict([line.split(": ", 1) for line in lines])
        except ValueError:
            pass  # some line has no space after its colon, or no colon
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
