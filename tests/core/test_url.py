from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from msgbus import BusURL
from msgbus._url import parse_options, scrub
from msgbus.errors import ConfigError


def test_a_url_is_parsed_into_its_parts() -> None:
    """Scheme, credentials, several hosts, path and options are told apart and unquoted."""
    url = BusURL.parse("amqps://us%40er:p%2Fw@one,two:5671,[::1]:99/v%2Fhost?heartbeat=20")

    assert url.scheme == "amqps"
    assert (url.username, url.password) == ("us@er", "p/w")
    assert url.hosts == (("one", None), ("two", 5671), ("::1", 99))
    assert url.path == "/v/host"
    assert url.get("heartbeat") == "20"


@pytest.mark.parametrize("show", [str, repr])
def test_secrets_are_never_shown(show: type) -> None:
    """Neither str nor repr has the password or a secret option in it."""
    url = BusURL.parse("amqp://ann:hunter2@host/v?sasl_password=hunter3&access_key=hunter4&heartbeat=20")

    assert "hunter" not in show(url)
    assert "heartbeat=20" in show(url)
    assert "ann:***@host" in show(url)
    assert show(BusURL.parse("nats://hunter2@host")).endswith(("nats://***@host", "nats://***@host')")), "a token"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "foo:hunter2@bar",
        "amqp://a:hunter2@b:99999",
        "amqp://a:hunter2/x@b",
        "amqp://a:hunter2?x@b",
        "amqp://a:1?x=hunter2@b",
        "amqp://a:1/hunter2@b",
        "amqp://a:1#hunter2@b",
        "://x",
        "1://x",
        "a://?x",
    ],
)
def test_what_is_no_url_is_refused_without_showing_secrets(text: str) -> None:
    """A bad URL is a ConfigError whose text does not contain the credentials, nor does its cause."""
    with pytest.raises(ConfigError) as caught:
        BusURL.parse(text)

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_foreign_texts_are_scrubbed() -> None:
    """Passwords in URLs are masked in texts that are not ours, such as tracebacks."""
    text = "cannot reach amqp://ann:hunter2@host:5672/v and https://x/y"

    assert scrub(text) == "cannot reach amqp://***@host:5672/v and https://x/y"
    assert scrub("redis://:hunter2@host") == "redis://***@host"
    assert scrub("nats://hunter2@host?token=hunter2&tls=1") == "nats://***@host?token=***&tls=1"
    assert scrub("amqp://ann:p@hunter2/?@host") == "amqp://***@host"


@dataclass(frozen=True)
class Options:
    heartbeat: float = 15.0
    size: int | None = None
    tls: bool = False
    mode: Literal["fast", "safe"] = "safe"
    password: str = ""


def test_options_come_from_the_query() -> None:
    """Query parameters become fields of their types."""
    url = BusURL.parse("x://?heartbeat=20&size=3&tls=yes&mode=fast")

    assert parse_options(url, Options) == Options(20.0, 3, True, "fast")
    assert parse_options(BusURL.parse("x://?size="), Options) == Options()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("hartbeat=1", "no option 'hartbeat'; it knows: heartbeat, mode, password, size, tls"),
        ("heartbeat=x", "'heartbeat' of x:// takes a number, got 'x'"),
        ("size=1.5", "takes a whole number"),
        ("tls=maybe", "takes true or false"),
        ("mode=slow", "takes one of fast, safe"),
    ],
)
def test_bad_options_are_named(query: str, said: str) -> None:
    """An unknown option or bad value is refused by name, with what is accepted."""
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        parse_options(BusURL.parse(f"x://?{query}"), Options)
