"""What a ``sqlite:`` URL may say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgbus.adapter import BusURL
from msgbus.errors import ConfigError

__all__ = ["Options", "database_path"]

_SYNCHRONOUS = ("NORMAL", "FULL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The URL's query parameters.

    Attributes:
        synchronous: ``NORMAL``: a confirmed message survives the death of any process; the last moments before a power
            failure or a crash of the operating system may be lost. ``FULL``: it survives those too, at the price of
            one disk flush per transaction. (SQLite's ``OFF`` can corrupt the file and is refused.)
        busy_timeout: How many seconds to wait for other processes' transactions before a call fails.
    """

    synchronous: str = "NORMAL"
    busy_timeout: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "synchronous", self.synchronous.upper())
        if self.synchronous not in _SYNCHRONOUS:
            raise ValueError(f"option 'synchronous' takes one of {', '.join(_SYNCHRONOUS)}, got {self.synchronous!r}")
        if not 0 <= self.busy_timeout < 86_400:
            raise ValueError(f"option 'busy_timeout' takes 0 to 86400 seconds, got {self.busy_timeout:g}")


def database_path(url: BusURL) -> Path:
    """Return the absolute path of the file *url* names.

    Raises:
        ConfigError: It names a host, no file, or SQLite's in-memory database.
    """
    if url.hosts or url.username is not None:
        raise ConfigError(
            f"{url} names a host, but SQLite is a file: write sqlite:///relative.db or sqlite:////absolute/path.db"
        )
    name = url.path.removeprefix("/")
    if name in {"", ":memory:"}:
        raise ConfigError(f"{url} names no file: write sqlite:///msgbus.db, or memory:// for a bus without a file")
    return Path(name).absolute()
