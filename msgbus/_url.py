"""Broker URLs: parsed once, and never shown with their secrets."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, unquote, urlsplit

from msgbus.errors import ConfigError

__all__ = ["BusURL", "parse_options", "scrub"]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")
_SECRET = re.compile(r"pass|secret|token|key|credential|sasl|nkey|seed|signature", re.IGNORECASE)
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}

_LATE_AT = "its @ comes after a /, ? or #: passwords and names have those as %2F, %3F and %23, all else has @ as %40"

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class BusURL:
    """A broker's or store's URL, e.g. ``amqps://user:secret@one,two:5671/vhost?heartbeat=20``.

    ``str()`` and ``repr()`` mask the password and every query value whose name looks like a secret, so the
    URL can be logged and put into errors as it is. Several hosts are separated by commas.
    """

    scheme: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str | BusURL) -> BusURL:
        """Parse a URL.

        Raises:
            ConfigError: It is not a URL. The text never contains the URL's credentials.
        """
        if isinstance(text, BusURL):
            return text
        scheme, separator, _ = text.partition("://")
        if not separator or not _SCHEME.match(scheme.lower()):
            raise ConfigError(
                "a broker URL looks like scheme://host:port/path?option=value "
                f"(for example sqlite:///msgbus.db), got {_without_userinfo(text)!r}"
            )
        try:
            parts = urlsplit(text)
            if parts.netloc and "@" not in parts.netloc and "@" in text:
                raise ValueError(_LATE_AT)
            userinfo, _, netloc = parts.netloc.rpartition("@")
            username, colon, password = userinfo.partition(":")
            return cls(
                scheme=scheme.lower(),
                username=unquote(username) or None,
                password=unquote(password) if colon else None,
                hosts=tuple(_host(host) for host in netloc.split(",") if host),
                path=unquote(parts.path),
                query=tuple(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))),
            )
        except ValueError as exc:
            # `from None`: the cause's text may quote the URL with its password.
            raise ConfigError(f"{_without_userinfo(text)!r} is not a valid broker URL: {_reason(exc)}") from None

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return a query parameter's value, the last one if it is given several times."""
        return dict(self.query).get(name, default)

    def __str__(self) -> str:
        # A name without a password may be all the credentials there are: a token.
        user = f"{self.username}:***" if self.username and self.password is not None else "***"
        user = user if self.username or self.password is not None else ""
        hosts = ",".join(_join(host, port) for host, port in self.hosts)
        query = "&".join(f"{k}={'***' if _SECRET.search(k) else v}" for k, v in self.query)
        return f"{self.scheme}://{user + '@' if user else ''}{hosts}{self.path}{'?' + query if query else ''}"

    def __repr__(self) -> str:
        return f"BusURL({str(self)!r})"


def parse_options(url: BusURL, options: type[Options]) -> Options:
    """Build an adapter's frozen options dataclass from the URL's query parameters.

    Every field needs a default; ``bool``, ``int``, ``float``, ``str``, ``X | None`` and ``Literal`` types work.

    Raises:
        ConfigError: A parameter is unknown or its value does not fit; the text names both and what is accepted.
    """
    hints = get_type_hints(options)
    known = {f.name: f for f in fields(options)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in url.query:
        if name not in known:
            raise ConfigError(f"{url.scheme}:// has no option {name!r}; it knows: {', '.join(sorted(known)) or 'none'}")
        try:
            values[name] = _convert(text, hints[name])
        except ValueError as exc:
            shown = "***" if _SECRET.search(name) else repr(text)
            raise ConfigError(f"option {name!r} of {url.scheme}:// takes {exc}, got {shown}") from None
    for name, spec in known.items():
        if name not in values and spec.default is MISSING and spec.default_factory is MISSING:
            raise ConfigError(f"{url.scheme}:// needs the option {name!r}")
    try:
        return options(**values)
    except ValueError as exc:
        raise ConfigError(f"{url.scheme}://: {exc}") from exc


def _convert(text: str, hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        if text == "" and type(None) in get_args(hint):
            return None
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if choices := (get_args(hint) if str(hint).startswith("typing.Literal") else ()):
        if text not in choices:
            raise ValueError(f"one of {', '.join(map(str, choices))}")
        return text
    if hint is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError("true or false")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError("a whole number" if hint is int else "a number") from None
    return text


def _host(text: str) -> tuple[str, int | None]:
    split = urlsplit(f"//{text}")
    if split.hostname is None:
        raise ValueError(f"the host {text!r} has no name")
    return split.hostname, split.port


def _join(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _without_userinfo(text: str) -> str:
    # All up to the last @, and not only what can be: a password with an unescaped / or ? is why it is no URL.
    head, at, tail = text.rpartition("@")
    scheme, separator, _ = head.partition("://")
    shown = tail.partition("?")[0]
    return f"{scheme + separator if separator else ''}***@{shown}" if at else shown


def _reason(exc: ValueError) -> str:
    text = str(exc)
    if text == _LATE_AT:
        return text
    return "its port is not a number from 0 to 65535" if "ort" in text else "it cannot be parsed"


_USERINFO = re.compile(r"(?<=://)[^\s'\"]*@")  # to the last @ of the word: rather too much than part of a password
_SECRET_OPTION = re.compile(rf"(?<=[?&])([\w.-]*(?:{_SECRET.pattern})[\w.-]*=)[^\s&'\"]*", re.IGNORECASE)


def scrub(text: str) -> str:
    """Return *text* with the credentials of every URL in it masked, for tracebacks and foreign error texts."""
    return _SECRET_OPTION.sub(r"\1***", _USERINFO.sub("***@", text)) if "://" in text else text
