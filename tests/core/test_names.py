from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgbus._names import check_name, escape_name, is_pattern, match_name, pattern_regex, unescape_name
from msgbus.errors import ChannelError

words = st.text("abcXYZ019_-", min_size=1, max_size=6)
names = st.lists(words, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize("name", ["orders", "order.placed", "a-b_c.9", "x" * 120])
def test_names_that_fit_every_broker_are_taken(name: str) -> None:
    """Words of letters, digits, '_' and '-' joined by dots are names."""
    assert check_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a.",
        "a b",
        "a/b",
        "../etc",
        "a*",
        "a.#",
        "a;DROP TABLE x",
        "a\r\nb",
        "ä",
        "x" * 121,
        7,
        None,
    ],
)
def test_hostile_names_are_refused(name: object) -> None:
    """Anything that could mean something to a broker is refused with what is allowed."""
    with pytest.raises(ChannelError, match="the name"):
        check_name(name, "the name")


@pytest.mark.parametrize("bad", ["a.#.b", "#", "a#", "**", "a.**"])
def test_bad_patterns_are_refused(bad: str) -> None:
    """'*' stands for a word, '#' only at the end."""
    with pytest.raises(ChannelError):
        check_name(bad, "pattern", pattern=True)


def test_patterns_match_words() -> None:
    """'*' matches exactly one word, '#' one or more."""
    assert match_name("order.*", "order.placed")
    assert not match_name("order.*", "order.placed.eu")
    assert not match_name("order.*", "order")
    assert match_name("order.#", "order.placed.eu")
    assert not match_name("order.#", "order")
    assert match_name("*.placed", "order.placed")
    assert is_pattern("a.*") and is_pattern("a.#") and not is_pattern("a.b")


@given(names)
def test_a_name_matches_itself_and_its_regex(name: str) -> None:
    """Without wildcards a pattern is its own only match."""
    assert match_name(name, name)
    assert re.fullmatch(pattern_regex(name), name)
    assert not match_name(name, name + ".x")


@given(st.text(max_size=30), st.sampled_from(["_", "-", "=", "%"]), st.sampled_from(["", "-_", ".-_"]))
def test_escaping_is_reversible_and_stays_in_the_alphabet(name: str, escape: str, allowed: str) -> None:
    """Any name maps to the broker's alphabet and back to itself, so two names never meet."""
    escaped = escape_name(name, allowed=allowed, escape=escape)

    assert unescape_name(escaped, escape=escape) == name
    assert all((c.isascii() and c.isalnum()) or c in allowed + escape for c in escaped)
