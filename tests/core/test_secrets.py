"""Secrets are in no log, repr, error, traceback or dead letter, whatever fails."""

from __future__ import annotations

import json
import logging
import socket
import traceback
from typing import Any

import pytest

from msgbus import Bus, Idempotency, Queue, Reject, Retry
from msgbus._registry import store_class
from msgbus._url import BusURL
from msgbus.adapter import AdapterConfig
from msgbus.errors import MsgbusError
from msgbus.testing import TestBus
from tests.core.support import run

SECRETS = ("correct-horse", "battery-staple")
BROKERS = [
    "amqp://ann:correct-horse@{}/v",
    "kafka://ann:correct-horse@{}?sasl=plain",
    "kafka://{}?sasl=oauthbearer&token=battery-staple",
    "nats://ann:correct-horse@{}",
    "nats://correct-horse@{}",
    "nats://{}?token=battery-staple",
    "nosuch://ann:correct-horse@{}?password=battery-staple",
    "sqs://ann:correct-horse@eu-central-1",
    "sqlite://ann:correct-horse@{}/bus.db",
]
STORES = [
    "redis://ann:correct-horse@{}/0",
    "redis://:correct-horse@{}/0",
    "postgresql://ann:correct-horse@{}/db",
    "nosuch://ann:correct-horse@{}",
]


@pytest.fixture
def address() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def everything_said(caplog: pytest.LogCaptureFixture, error: BaseException, *objects: Any) -> str:
    formatter = logging.Formatter("%(name)s %(message)s")
    said = [formatter.format(record) for record in caplog.records]
    said += traceback.format_exception(error)
    while error is not None:
        said += [str(error), repr(error), repr(error.args)]
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return "\n".join([*said, *map(repr, objects), *map(str, objects)])


@pytest.mark.parametrize("url", BROKERS)
def test_a_broker_that_is_not_there(url: str, address: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that is said about it, on any log level, tells its credentials."""
    caplog.set_level(logging.DEBUG)
    bus = Bus(url.format(address))

    async def main() -> None:
        async with bus:
            raise AssertionError("nobody listens there")

    with pytest.raises(MsgbusError) as caught:
        run(main(), within=60)

    said = everything_said(caplog, caught.value, bus)
    assert not [secret for secret in SECRETS if secret in said], said


@pytest.mark.parametrize("url", STORES)
def test_a_store_that_is_not_there(url: str, address: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nor about an idempotency store."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        parsed = BusURL.parse(url.format(address))
        store = store_class(parsed)(parsed, AdapterConfig())
        try:
            await store.open()
        finally:
            await store.aclose()

    with pytest.raises(MsgbusError) as caught:
        run(main(), within=60)

    said = everything_said(caplog, caught.value)
    assert not [secret for secret in SECRETS if secret in said], said


def test_an_exception_that_quotes_a_url(caplog: pytest.LogCaptureFixture) -> None:
    """Dead letters, and the log lines about them, have a foreign text's URLs without their credentials."""
    orders = Queue("orders", str)
    bus = Bus("memory://")
    url = "amqp://ann:correct-horse@host/v?sasl_password=battery-staple"

    @bus.on(orders, retry=Retry(attempts=1), idempotent=Idempotency())
    async def handle(text: str) -> None:
        if text == "reject":
            raise Reject(f"no way to {url}")
        try:
            raise OSError(f"cannot connect to {url}")
        except OSError as exc:
            raise RuntimeError(f"{url} is away") from exc

    async def main() -> None:
        async with TestBus(bus) as t:
            await bus.send(orders, "fail")
            await bus.send(orders, "reject")
            await t.drain()
            for dead in t.dead_letters(orders):
                said = json.dumps([repr(dead), repr(dead.report), dict(dead.message.headers), dead.report.traceback])
                assert not [secret for secret in SECRETS if secret in said], said

    run(main())
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert "dead-lettered" in messages
    assert not [secret for secret in SECRETS if secret in messages], messages
