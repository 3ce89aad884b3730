from __future__ import annotations

import logging
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from msgbus import Bus, BusURL, Queue, Retry, Topic
from msgbus import _registry as registry
from msgbus._config import load_settings
from msgbus.adapter import Capabilities
from msgbus.errors import ClosedError, ConfigError, HandlerError, MissingExtra, UnknownScheme, UnsupportedFeature
from msgbus_memory import MemoryAdapter
from tests.core.support import Order, run


def test_everything_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting has a variable; what is given in code wins."""
    monkeypatch.setenv("MSGBUS_URL", "memory://here")
    monkeypatch.setenv("MSGBUS_ROUTES", '{"audit.#": "sqlite:///audit.db"}')
    monkeypatch.setenv("MSGBUS_NAMESPACE", "prod")
    monkeypatch.setenv("MSGBUS_PREFETCH", "7")
    monkeypatch.setenv("MSGBUS_TOPOLOGY", "verify")
    settings, chosen = load_settings(prefetch=9)

    assert chosen
    assert str(settings.url) == "memory://here"
    assert settings.routes == (("audit.#", BusURL.parse("sqlite:///audit.db")),)
    assert (settings.namespace, settings.prefetch, settings.topology) == ("prod", 9, "verify")


def test_without_a_choice_the_embedded_broker_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    """MSGBUS_URL unset means sqlite:///msgbus.db in the working directory, and the log says so."""
    monkeypatch.delenv("MSGBUS_URL", raising=False)
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with Bus():
            pass

    with caplog.at_level(logging.INFO, "msgbus"):
        run(main())

    assert "MSGBUS_URL is not set: using sqlite:///msgbus.db" in caplog.text
    assert (tmp_path / "msgbus.db").exists()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MSGBUS_PREFECTH", "3", "MSGBUS_PREFECTH is not a setting of msgbus; did you mean MSGBUS_PREFETCH"),
        ("MSGBUS_QQQQQQQQ", "3", "known are MSGBUS_CONCURRENCY"),
        ("MSGBUS_CONCURRENCY", "many", "MSGBUS_CONCURRENCY: "),
        ("MSGBUS_CONCURRENCY", "0", "MSGBUS_CONCURRENCY: .*greater than or equal to 1"),
        ("MSGBUS_TOPOLOGY", "maybe", "MSGBUS_TOPOLOGY: .*'create', 'verify' or 'skip'"),
        ("MSGBUS_NAMESPACE", "a b", "MSGBUS_NAMESPACE"),
        ("MSGBUS_ROUTES", '{"a b": "memory://"}', "MSGBUS_ROUTES"),
        ("MSGBUS_ROUTES", "{", "MSGBUS_ROUTES"),
        ("MSGBUS_URL", "nonsense", "a broker URL looks like"),
        ("MSGBUS_DRAIN_TIMEOUT", "-1", "MSGBUS_DRAIN_TIMEOUT"),
        ("MSGBUS_LEASE", "inf", "MSGBUS_LEASE"),
    ],
)
def test_bad_variables_are_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    """A bad or unknown variable fails at start with its name and what is accepted."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigError, match=said):
        load_settings()


def test_an_unknown_scheme_says_what_is_installed() -> None:
    """A scheme nobody registered is refused with a hint, without the URL's password."""
    with pytest.raises(UnknownScheme, match=r"did you mean sqlite://\?") as caught:
        registry.adapter_class(BusURL.parse("sqlit://ann:hunter2@host"))
    with pytest.raises(UnknownScheme, match="installed: .*memory"):
        registry.store_class(BusURL.parse("zzzz://"))

    assert "hunter2" not in str(caught.value)


def entry(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    found = (EntryPoint("odd", value, "msgbus.adapters"),)
    monkeypatch.setattr(registry, "entry_points", lambda **_: found)


def test_a_missing_client_library_names_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A missing extra is told; a bug inside the adapter is shown as itself."""
    (tmp_path / "odd_missing.py").write_text("import a_client_nobody_has")
    (tmp_path / "odd_broken.py").write_text("import odd_broken.nope")
    (tmp_path / "odd_wrong.py").write_text("Thing = 7")
    monkeypatch.syspath_prepend(tmp_path)
    url = BusURL.parse("odd://")

    entry(monkeypatch, "odd_missing:Thing")
    with pytest.raises(MissingExtra, match="needs the package 'a_client_nobody_has': pip install"):
        registry.adapter_class(url)
    entry(monkeypatch, "odd_broken:Thing")
    with pytest.raises(ModuleNotFoundError):
        registry.adapter_class(url)
    entry(monkeypatch, "odd_wrong:Thing")
    with pytest.raises(UnknownScheme, match="is not a msgbus Adapter"):
        registry.adapter_class(url)
    sys.modules.pop("odd_wrong", None)


def test_schemes_are_listed() -> None:
    """What is installed can be asked for."""
    assert {"memory", "sqlite"} <= set(registry.adapter_schemes())


def limited(monkeypatch: pytest.MonkeyPatch, **lacks: Any) -> None:
    """Take capabilities from the memory adapter."""
    monkeypatch.setattr(MemoryAdapter, "capabilities", Capabilities(**lacks))


@pytest.mark.parametrize(
    ("lacks", "register", "feature"),
    [
        ({"groups": False, "max_delay": 1}, lambda bus, h: bus.on(Topic("t", Order), group="g")(h), "groups"),
        ({"max_delay": 1}, lambda bus, h: bus.on(Topic("t.*", Order), group="g")(h), "patterns"),
        ({"max_delay": 1}, lambda bus, h: bus.on(Queue("q", Order, key="id"))(h), "order=key"),
        ({"max_delay": 1, "order": "key"}, lambda b, h: b.on(Queue("q", Order, key="id"), park=True)(h), "park_keys"),
        ({"max_delay": 1}, lambda bus, h: bus.on(Queue("q", Order), start="earliest")(h), "replay"),
        ({}, lambda bus, h: bus.on(Queue("q", Order), retry=Retry(attempts=2))(h), "max_delay"),
    ],
)
def test_what_the_broker_lacks_is_refused_by_name_at_start(
    monkeypatch: pytest.MonkeyPatch, lacks: dict[str, Any], register: Any, feature: str
) -> None:
    """An undeclared capability is refused when the bus is opened, never at the first message."""
    limited(monkeypatch, **lacks)
    bus = Bus("memory://")
    register(bus, lambda order: None)

    async def main() -> None:
        with pytest.raises(UnsupportedFeature, match=feature) as caught:
            await bus.__aenter__()
        assert caught.value.feature == feature
        assert caught.value.adapter == "memory"

    run(main())


def test_requests_are_refused_where_the_broker_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker without request-reply says so."""
    from msgbus import RequestReply

    limited(monkeypatch, requests="none")

    async def main() -> None:
        async with Bus("memory://") as bus:
            with pytest.raises(UnsupportedFeature, match="requests"):
                await bus.request(RequestReply("r", Order, str), Order(id="1"))

    run(main())


def test_prefetch_must_feed_the_handlers() -> None:
    """A prefetch below the concurrency would leave handlers idle for ever."""
    bus = Bus("memory://")
    bus.on(Queue("q", Order), concurrency=10, prefetch=5)(lambda order: None)

    async def main() -> None:
        with pytest.raises(HandlerError, match="prefetch=5 cannot feed concurrency=10"):
            await bus.__aenter__()

    run(main())


def test_an_idempotent_handler_needs_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a store the bus does not start; not the first duplicate finds out."""
    monkeypatch.setattr("msgbus._guards.has_store", lambda _: False)
    bus = Bus("memory://")
    bus.on(Queue("q", Order), idempotent=True)(lambda order: None)

    async def main() -> None:
        with pytest.raises(ConfigError, match="MSGBUS_IDEMPOTENCY_URL"):
            await bus.__aenter__()

    run(main())


def test_channels_can_live_on_several_brokers(tmp_path: Any) -> None:
    """Routes send channels to other brokers; the rest stays with the default."""
    bus = Bus("memory://", routes={"audit.#": f"sqlite:///{tmp_path}/audit.db"}, namespace="test")
    seen: list[str] = []
    audit, orders = Queue("audit.log", Order), Queue("orders", Order)
    bus.on(audit)(lambda order: seen.append(order.id))

    async def main() -> None:
        async with bus:
            await bus.send(audit, Order(id="1"))
            await bus.send(orders, Order(id="2"))
            assert (await bus.stats(audit)).ready == 1
            assert set(bus.health().brokers) == {"memory://", f"sqlite:///{tmp_path}/audit.db"}
            assert await bus.raw(orders) is not None
            assert await bus.raw() is await bus.raw(orders)
            await bus.start(only=["audit.log"])
            await bus.drain()
            with pytest.raises(HandlerError, match="no handler is registered for nope"):
                await bus.start(only=["nope"])
            with pytest.raises(ClosedError, match="open already"):
                await bus.__aenter__()

    run(main())
