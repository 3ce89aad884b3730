"""Everything that configures: a named error, and never a secret in it."""

from __future__ import annotations

import os
import string
from dataclasses import fields
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from msgbus._config import Settings, load_settings
from msgbus._names import check_name
from msgbus._registry import adapter_class, adapter_schemes, store_class
from msgbus._url import BusURL, scrub
from msgbus.adapter import AdapterConfig
from msgbus.errors import ChannelError, ConfigError, MissingExtra
from msgbus_aws import _options as aws
from msgbus_kafka import _options as kafka
from msgbus_nats import _options as nats
from msgbus_postgres import _options as postgres
from msgbus_rabbitmq import _options as rabbitmq
from msgbus_redis import _options as redis
from msgbus_sqlite import _options as sqlite
from tests.fuzz.texts import TEXTS

SECRET = "S3cr3T"
SPECIAL = st.text(alphabet="@:/?#[]%&=+ ;,'\"\\" + string.ascii_letters + string.digits, max_size=8)
ADAPTERS = {scheme: adapter_class(BusURL(scheme=scheme)) for scheme in adapter_schemes()}
STORES = {
    scheme: store_class(BusURL(scheme=scheme)) for scheme in ("redis", "postgres", "sqlite", "memory", "dynamodb")
}
SCHEMES = sorted(ADAPTERS)
KINDS = (
    aws.AwsOptions, kafka.Options, nats.NatsOptions, postgres.Options, rabbitmq.Options, redis.Options, sqlite.Options,
)  # fmt: skip
OPTIONS = sorted({field.name for kind in KINDS for field in fields(kind)})
VALUES = st.one_of(
    TEXTS, st.integers().map(str), st.floats().map(str), st.sampled_from(["true", "no", "", "0", "-0.0"])
)
QUERIES = st.lists(st.tuples(st.one_of(st.sampled_from(OPTIONS), TEXTS), VALUES), max_size=3)
HOSTS = st.sampled_from(
    ["localhost", "h:1", "a,b:2,[::1]:3", "", "h:0", "h:65536", "eu-central-1", "[", ":", "h:x", ","]
)
URLS = st.builds(
    lambda scheme, user, host, path, query: (
        f"{scheme}://{user}{host}{path}" + ("?" + "&".join(f"{k}={v}" for k, v in query) if query else "")
    ),
    st.one_of(st.sampled_from([*SCHEMES, *STORES]), st.text(max_size=5)),
    st.one_of(st.just(""), SPECIAL.map(lambda text: f"{text}@")),
    st.one_of(HOSTS, TEXTS),
    st.one_of(st.sampled_from(["", "/", "/v", "//", "/a/b", "/%2f", "/:memory:"]), TEXTS),
    QUERIES,
)


@given(st.one_of(URLS, TEXTS))
def test_urls(text):
    """A URL is one, or is refused as a ConfigError; what was parsed reads the same again."""
    try:
        url = BusURL.parse(text)
    except ConfigError:
        return
    repr(url)
    assert BusURL.parse(url) is url
    url.get("x")


@given(st.sampled_from([*SCHEMES, "nosuch"]), st.sampled_from(["", "ann"]), SPECIAL, SPECIAL, HOSTS, QUERIES)
def test_passwords_are_never_shown(scheme, user, before, after, host, query):
    """However the URL is broken, and wherever it is quoted: its password is in no text."""
    rest = "?" + "&".join(f"{k}={v}" for k, v in query) if query else ""
    text = f"{scheme}://{user}:{before}{SECRET}{after}@{host}{rest}"
    try:
        shown = str(BusURL.parse(text))
    except ConfigError as exc:
        shown = f"{exc} {exc!r} {exc.__cause__!r}"
    assert SECRET not in shown
    if not set(" '\"") & set(before + after):
        assert SECRET not in scrub(f'File "x.py", line 1: cannot connect to {text}: refused')


@given(
    st.sampled_from(SCHEMES),
    HOSTS,
    st.sampled_from(["", "/", "/v", "/a/b"]),
    QUERIES,
    st.sampled_from(["", "u:p@", "u@", ":p@"]),
)
def test_adapters_options(scheme, host, path, query, user):
    """An adapter is made, or says which option is wrong."""
    url = BusURL(scheme=scheme, query=tuple(query), path=path, **_user(user), hosts=_hosts(host))
    try:
        ADAPTERS[scheme](url, AdapterConfig())
    except (ConfigError, MissingExtra) as exc:
        assert "\n" not in str(exc)


@given(
    st.sampled_from(sorted(STORES)),
    HOSTS,
    st.sampled_from(["", "/", "/0", "/x", "/a/b", "/-1", "/²"]),
    QUERIES,
    st.sampled_from(["", "u:p@"]),
)
def test_stores_options(scheme, host, path, query, user):
    """So is a store."""
    url = BusURL(scheme=scheme, query=tuple(query), path=path, **_user(user), hosts=_hosts(host))
    try:
        STORES[scheme](url, AdapterConfig())
    except (ConfigError, MissingExtra) as exc:
        assert "\n" not in str(exc)


def _user(text):
    if not text:
        return {}
    name, colon, word = text[:-1].partition(":")
    return {"username": name or None, "password": word if colon else None}


def _hosts(text):
    try:
        return BusURL.parse(f"x://{text}").hosts
    except ConfigError:
        return ()


SETTINGS = [*(field.name.upper() for field in fields(Settings)), "NO_SUCH"]
IN_ENVIRONMENT = VALUES.filter(lambda text: "\x00" not in text and len(text) < 100_000)


@given(
    st.dictionaries(
        st.sampled_from([f"MSGBUS_{name}" for name in SETTINGS]),
        st.one_of(IN_ENVIRONMENT, URLS.filter(lambda u: "\x00" not in u)),
        max_size=3,
    )
)
def test_the_environment(variables):
    """The settings are read, or the error names the variable."""
    with mock.patch.dict(os.environ, variables):
        try:
            settings, _ = load_settings()
        except ConfigError as exc:
            assert "MSGBUS_" in str(exc) or "://" in str(exc)
        else:
            assert {f.name for f in fields(settings)}


@given(st.text(max_size=130))
def test_names(text):
    """What passes as a name has nothing in it that any broker, shell or query would read as more than letters."""
    try:
        name = check_name(text, "the name")
    except ChannelError as exc:
        assert "\n" not in str(exc)
    else:
        assert set(name) <= set(string.ascii_letters + string.digits + "_-.")
