"""What is peculiar to the Redis store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from msgbus.errors import AccessDenied, ClosedError, ConfigError, StoreUnavailable
from msgbus.store import AdapterConfig, BusURL, Claim, Completion, Done, Granted, InProgress
from msgbus_redis import RedisStore
from scripts.brokers import Broker
from scripts.brokers._net import free_port
from tests.core.support import run

SECRET = "correct-horse"


def claim(key: str = "k", owner: str = "me", fingerprint: str = "f", lease: float = 10) -> Claim:
    return Claim("scope", key, owner, fingerprint, lease)


@asynccontextmanager
async def opened(url: str, **config: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(BusURL.parse(url), AdapterConfig(**config))
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def server(brokers: Callable[[str], Broker]) -> Any:
    """Return the URL of an empty database, and a client for it."""
    url = brokers("redis").url
    client = redis.Redis.from_url(url)
    client.flushall()
    return url, client


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis:///0", "must name one host"),
        ("redis://a,b/0", "must name one host"),
        ("redis://localhost/shop", "the database's number"),
        ("redis://localhost/0?prefix=", "prefix must not be empty"),
        ("redis://localhost/0?timeout=0", "timeout takes more than 0"),
        ("redis://localhost/0?ttl=3", "no option 'ttl'"),
        ("redis://localhost/0?tls_ca=x.pem", "write rediss://"),
        ("rediss://localhost/0?tls_cert=x.pem", "go together"),
    ],
)
def test_a_wrong_url_is_refused(url: str, says: str) -> None:
    """Before anything is connected, with what is wrong."""
    with pytest.raises(ConfigError, match=says):
        RedisStore(BusURL.parse(url), AdapterConfig())


def test_tls_files_are_passed_on(tmp_path: Any) -> None:
    """A certificate file that is not there is an error of the first connection."""

    async def main() -> None:
        with pytest.raises((StoreUnavailable, OSError)):
            async with opened(f"rediss://localhost:{free_port()}?tls_ca={tmp_path}/missing.pem"):
                pass

    run(main())


def test_an_unreachable_server_is_told_without_the_password() -> None:
    """The URL is shown, its password is not."""

    async def main() -> None:
        with pytest.raises(StoreUnavailable, match="unavailable") as caught:
            async with opened(f"redis://ann:{SECRET}@127.0.0.1:{free_port()}/0"):
                pass
        assert SECRET not in f"{caught.value}{caught.value!r}{caught.value.__cause__}"

    run(main())


def test_wrong_credentials_are_denied(server: Any) -> None:
    """AccessDenied, without the password."""
    url, client = server
    client.execute_command("ACL", "SETUSER", "ann", "on", ">right", "~msgbus:*", "+@all")

    async def main() -> None:
        wrong = url.replace("redis://", f"redis://ann:{SECRET}@")
        with pytest.raises(AccessDenied, match="refused the credentials") as caught:
            async with opened(wrong):
                pass
        assert SECRET not in str(caught.value)
        async with opened(url.replace("redis://", "redis://ann:right@")) as store:
            assert list(await store.claim([claim()])) == [Granted()]

    run(main())


def test_a_user_without_rights_makes_messages_wait(server: Any) -> None:
    """Rights that are missing at run time are the store's failure, not the message's."""
    url, client = server
    client.execute_command("ACL", "SETUSER", "bob", "on", ">right", "~other:*", "+@all")

    async def main() -> None:
        async with opened(url.replace("redis://", "redis://bob:right@")) as store:
            with pytest.raises(StoreUnavailable, match="permission"):
                await store.claim([claim()])

    run(main())


def test_a_server_that_forgets_is_warned_of(server: Any, caplog: Any) -> None:
    """A maxmemory policy that throws records away is told when the store is opened."""
    url, client = server

    async def main() -> None:
        async with opened(url):
            pass

    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with caplog.at_level(logging.WARNING, "msgbus"):
            run(main())
        assert "maxmemory-policy is allkeys-lru" in caplog.text
        caplog.clear()
        client.config_set("maxmemory-policy", "noeviction")
        run(main())
        assert not caplog.text
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "0")


def test_keys_end_by_themselves(server: Any) -> None:
    """Every record has a time to live: nothing has to be purged, and no lock stays for ever."""
    url, client = server

    async def main() -> None:
        async with opened(f"{url}?prefix=shop", service="a shop") as store:
            await store.claim([claim("a"), claim("b")])
            await store.complete([Completion(claim("b"), b"r", 100)])
            assert await store.purge(10) == 0
            names = {info["name"] for info in client.client_list()}
            assert "a-shop" in names

    run(main())

    assert 9_000 < client.pttl("shop:5:scope:a") <= 10_000
    assert 99_000 < client.pttl("shop:5:scope:b") <= 100_000


def test_scripts_come_back_after_a_flush(server: Any) -> None:
    """A server that lost its scripts (a restart, a failover) is given them again."""
    url, client = server

    async def main() -> None:
        async with opened(url) as store:
            assert list(await store.claim([claim()])) == [Granted()]
            client.script_flush()
            (verdict,) = await store.claim([claim(owner="you")])
            assert isinstance(verdict, InProgress)

    run(main())


def test_a_completion_can_be_repeated(server: Any) -> None:
    """When the answer to a completion got lost, its owner may say it again; nobody else may."""
    url, _ = server

    async def main() -> None:
        async with opened(url) as store:
            await store.claim([claim()])
            done = Completion(claim(), b"reply", 100)
            assert list(await store.complete([done])) == [None]
            assert list(await store.complete([done])) == [None]
            (error,) = await store.complete([Completion(claim(owner="you"), b"other", 100)])
            assert error is not None
            assert list(await store.claim([claim()])) == [Done(b"reply")]

    run(main())


def test_a_closed_store_says_so(server: Any) -> None:
    """Use before opening and after closing is an error; closing twice is not."""
    url, _ = server

    async def main() -> None:
        store = RedisStore(BusURL.parse(url), AdapterConfig())
        with pytest.raises(ClosedError, match="not open"):
            await store.claim([claim()])
        await store.open()
        await store.open()
        assert store.raw is not None
        await store.aclose()
        await store.aclose()
        with pytest.raises(ClosedError, match="closed"):
            await store.claim([claim()])
        with pytest.raises(ClosedError):
            await store.open()

    run(main())
