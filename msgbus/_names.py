"""Channel names: which are allowed, which match a pattern, and how adapters map them to their broker's alphabet."""

from __future__ import annotations

import re
import string

from msgbus.errors import ChannelError

__all__ = ["check_name", "escape_name", "is_pattern", "match_name", "pattern_regex", "unescape_name"]

MAX_LENGTH = 120
"""The longest channel or group name. Longer would not fit brokers once a namespace, a group and a suffix are added
(SQS: 80 characters, refused there by name; Kafka: 249; RabbitMQ: 255)."""

_WORD = r"[A-Za-z0-9_-]+"
_NAME = re.compile(rf"{_WORD}(\.{_WORD})*\Z")
_PATTERN = re.compile(rf"({_WORD}|\*)(\.({_WORD}|\*))*(\.\#)?\Z")


def check_name(name: object, what: str, *, pattern: bool = False) -> str:
    """Return *name* if it can name a channel, group or namespace on every broker.

    Names are words of ASCII letters, digits, ``_`` and ``-``, joined by dots. A pattern may have ``*`` (any one
    word) in place of a word, and ``#`` (one or more words) as its last.

    Raises:
        ChannelError: It does not fit; the text says what is allowed.
    """
    if not isinstance(name, str):
        raise ChannelError(f"{what} must be a string, got {type(name).__name__}")
    if len(name) > MAX_LENGTH:
        raise ChannelError(f"{what} has {len(name)} characters, at most {MAX_LENGTH} fit: {name[:40]!r}…")
    if not (_PATTERN if pattern else _NAME).match(name):
        raise ChannelError(
            f"{what} {name!r} is not usable on every broker: use words of letters, digits, '_' and '-', "
            "joined by dots, for example 'order.placed'"
            + (" ('*' stands for one word, a last '#' for one or more)" if pattern else "")
        )
    return name


def is_pattern(name: str) -> bool:
    """Tell whether *name* is a pattern over channel names rather than one channel's name."""
    return "*" in name or "#" in name


def pattern_regex(pattern: str) -> str:
    """Return the regular expression that matches the same names as *pattern*."""
    words = (
        _WORD if word == "*" else rf"{_WORD}(\.{_WORD})*" if word == "#" else re.escape(word)
        for word in pattern.split(".")
    )
    return r"\.".join(words)


def match_name(pattern: str, name: str) -> bool:
    """Tell whether the channel *name* matches *pattern*."""
    return re.fullmatch(pattern_regex(pattern), name) is not None


def escape_name(name: str, *, allowed: str, escape: str) -> str:
    """Map *name* to a broker's alphabet, reversibly and without clashes.

    Characters outside ASCII letters, digits and *allowed* become *escape* and two hexadecimal digits per UTF-8
    byte; so does *escape* itself, which is what keeps two names from meeting.

    Args:
        name: Any text.
        allowed: The characters the broker takes besides ASCII letters and digits.
        escape: The one character that begins an escape; the broker must take it.
    """
    plain = (set(string.ascii_letters + string.digits) | set(allowed)) - {escape}
    return "".join(c if c in plain else "".join(f"{escape}{b:02x}" for b in c.encode()) for c in name)


def unescape_name(text: str, *, escape: str) -> str:
    """Return the name that `escape_name` mapped to *text*."""
    raw = re.sub(
        re.escape(escape).encode() + rb"([0-9a-f]{2})",
        lambda m: bytes([int(m[1], 16)]),
        text.encode(),
    )
    return raw.decode()
