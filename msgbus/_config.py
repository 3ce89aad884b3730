"""Configuration from the environment: every ``MSGBUS_*`` variable, validated at start with its own name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from msgbus._names import check_name
from msgbus._url import BusURL
from msgbus.adapter import Provision
from msgbus.errors import ChannelError, ConfigError

__all__ = ["DEFAULT_URL", "Settings", "load_settings"]

DEFAULT_URL = "sqlite:///msgbus.db"
"""The broker when nothing was chosen: durable, no server, shared by the processes of one machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a bus is configured with. Each field is the environment variable ``MSGBUS_<FIELD>``.

    Attributes:
        url: The broker's URL.
        routes: Other brokers for some channels: a JSON object from channel pattern to URL; the first match counts.
        namespace: Put before all names, so that environments can share a broker.
        service: The application's name: the ``ce-source`` of what it publishes, and in connection names.
        concurrency: How many messages a subscription handles at once unless it says otherwise.
        prefetch: How many messages a subscription holds at most; 0 chooses from its concurrency.
        lease: For how many seconds a received message stays ours between two heartbeats.
        max_body: The largest body in bytes. A larger one is refused at publish, and dead-lettered undecoded if it comes
            from elsewhere; what the broker takes at most is a limit, too.
        publish_timeout: Seconds until an unconfirmed publish is given up.
        drain_timeout: Seconds that running handlers get to finish at shutdown.
        idempotency_url: The idempotency store's URL: ``redis:``, ``postgresql:`` or ``sqlite:``; None uses the embedded
            broker's own store.
        topology: create | verify | skip: whether the application may create what it uses.
    """

    url: BusURL
    routes: tuple[tuple[str, BusURL], ...] = ()
    namespace: str = ""
    service: str = "msgbus"
    concurrency: int = 16
    prefetch: int = 0
    lease: float = 30.0
    max_body: int = 64 * 1024 * 1024
    publish_timeout: float = 30.0
    drain_timeout: float = 30.0
    idempotency_url: BusURL | None = None
    topology: Provision = Provision.CREATE

    @property
    def service_word(self) -> str:
        """The service as one word of a channel name."""
        return re.sub(r"[^A-Za-z0-9_-]", "-", self.service)


_NAMES = frozenset(Settings.__dataclass_fields__)
_OTHER_VARIABLES = ("MSGBUS_TEST_", "MSGBUS_DEMO_")


def load_settings(**overrides: Any) -> tuple[Settings, bool]:
    """Read the settings: *overrides* that are not None first, then the environment, then the defaults.

    Returns:
        The settings, and whether the broker's URL was chosen by somebody (False: it is the default).

    Raises:
        ConfigError: A variable is unknown or its value does not fit; the text names it and what is accepted.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - importing msgbus stays quick
    from pydantic_settings import SettingsError  # noqa: PLC0415

    _refuse_unknown_variables()
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        raw = _environment()(**given)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, set(given))) from None
    except SettingsError:  # its text names the field only
        raise ConfigError("MSGBUS_ROUTES: takes a JSON object from channel pattern to URL") from None
    values = {name: getattr(raw, name) for name in _NAMES}
    chosen = values["url"] is not None
    values["url"] = BusURL.parse(DEFAULT_URL if values["url"] is None else values["url"])
    values["routes"] = tuple(_route(pattern, url) for pattern, url in values["routes"].items())
    if values["idempotency_url"] is not None:
        values["idempotency_url"] = BusURL.parse(values["idempotency_url"])
    try:
        if values["namespace"]:
            check_name(values["namespace"], "MSGBUS_NAMESPACE")
    except ChannelError as exc:
        raise ConfigError(str(exc)) from exc
    return Settings(**values), chosen


def _environment() -> type[Any]:
    from pydantic import Field  # noqa: PLC0415 - importing msgbus stays quick
    from pydantic_settings import BaseSettings, SettingsConfigDict  # noqa: PLC0415

    class Environment(BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix="MSGBUS_", extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
        )

        url: BusURL | str | None = None
        routes: dict[str, BusURL | str] = Field(default_factory=dict)
        namespace: str = ""
        service: str = Field("msgbus", min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$")
        concurrency: int = Field(16, ge=1, le=100_000)
        prefetch: int = Field(0, ge=0, le=100_000)
        lease: float = Field(30.0, ge=0.1, le=43_200, allow_inf_nan=False)
        max_body: int = Field(64 * 1024 * 1024, ge=1)
        publish_timeout: float = Field(30.0, gt=0, allow_inf_nan=False)
        drain_timeout: float = Field(30.0, ge=0, allow_inf_nan=False)
        idempotency_url: BusURL | str | None = None
        topology: Provision = Provision.CREATE

    return Environment


def _refuse_unknown_variables() -> None:
    known = {f"MSGBUS_{name.upper()}" for name in _NAMES}
    for variable in os.environ:
        upper = variable.upper()
        if upper.startswith("MSGBUS_") and upper not in known and not upper.startswith(_OTHER_VARIABLES):
            close = get_close_matches(upper, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"{variable} is not a setting of msgbus; {hint}")


def _route(pattern: str, url: BusURL | str) -> tuple[str, BusURL]:
    try:
        return check_name(pattern, "MSGBUS_ROUTES: the channel pattern", pattern=True), BusURL.parse(url)
    except ChannelError as exc:
        raise ConfigError(str(exc)) from exc


def _explain(exc: Any, given: set[str]) -> str:
    problems = []
    for error in exc.errors(include_url=False, include_input=False):
        name = str(error["loc"][0])
        shown = f"{name}=" if name in given else f"MSGBUS_{name.upper()}"
        problems.append(f"{shown}: {error['msg']}")
    return "; ".join(dict.fromkeys(problems))
