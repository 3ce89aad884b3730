"""A broker that somebody else runs, named by ``MSGBUS_TEST_<BROKER>_URL``."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from scripts.brokers._broker import Broker, BrokerError, Launch

__all__ = ["ExternalBroker"]


class ExternalBroker(Broker):
    """It has a URL and nothing to control: starting and closing do nothing, the rest raises."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name  # type: ignore[misc]  # a class variable elsewhere: here each object stands for another broker
        self.url = url
        self.folder = self.log = Path("/nonexistent")

    @classmethod
    def _missing(cls) -> None:
        return None

    @classmethod
    def _install(cls) -> None:
        return

    @property
    def controllable(self) -> bool:
        return False

    @property
    def running(self) -> bool:
        return True

    @property
    def pid(self) -> NoReturn:
        self._refuse()

    def start(self) -> None:
        return

    def stop(self) -> NoReturn:
        self._refuse()

    def kill(self) -> NoReturn:
        self._refuse()

    def proxy(self) -> NoReturn:
        self._refuse()

    def close(self) -> None:
        return

    def _refuse(self) -> NoReturn:
        variable = f"MSGBUS_TEST_{self.name.upper()}_URL"
        raise BrokerError(f"the {self.name} at {variable} is not ours to control; unset {variable} to start our own")

    def _prepare(self) -> None:
        self._refuse()

    def _launch(self) -> Launch:
        self._refuse()

    def _ready(self) -> bool:
        return True
