"""Find the application's bus: ``module:bus``."""

from __future__ import annotations

import inspect
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import msgbus
from msgbus._bus import Bus
from msgbus._channel import Channel
from msgbus._registration import Registration
from msgbus.adapter import Kind
from msgbus.cli._errors import Misuse

__all__ = ["App", "load_app"]

_FOREIGN = (f"{Path(msgbus.__file__).parent}/", f"{sysconfig.get_path('stdlib')}/", "<frozen")


@dataclass(frozen=True, slots=True)
class App:
    """An application.

    Attributes:
        name: ``module:bus`` as it was given.
        bus: Its bus.
        module: The module the bus is in.
    """

    name: str
    bus: Bus
    module: ModuleType

    @property
    def channels(self) -> list[Channel[Any]]:
        """The channels the application consumes, and those that are values of its module."""
        named = [value for value in vars(self.module).values() if isinstance(value, Channel)]
        return list(dict.fromkeys([r.channel for r in self.bus.subscriptions] + named))

    def channel(self, name: str, *kinds: Kind) -> Channel[Any]:
        """Return the channel *name* of one of the *kinds*.

        Raises:
            Misuse: There is none; says which there are.
        """
        fitting = [c for c in self.channels if c.kind in kinds]
        for channel in fitting:
            if channel.name == name:
                return channel
        what = " or ".join(kinds)
        raise Misuse(f"{self.name} has no {what} {name!r}{_hint(name, [c.name for c in fitting])}")

    def registration(self, label: str) -> Registration:
        """Return the subscription *label* (``channel`` or ``channel@group``).

        Raises:
            Misuse: There is none; says which there are.
        """
        found: dict[str, Registration] = {r.label: r for r in self.bus.subscriptions}
        if label not in found:
            raise Misuse(f"{self.name} has no subscription {label!r}{_hint(label, list(found))}")
        return found[label]


def load_app(target: str, directory: Path, *, factory: bool = False) -> App:
    """Import the bus that *target* names.

    Args:
        target: ``module:attribute``.
        directory: Put before the import path.
        factory: The attribute is a function that returns the bus.

    Raises:
        Misuse: It cannot be imported, or is not a bus. The text says why and where.
    """
    name, colon, attribute = target.partition(":")
    if not colon or not name or not attribute:
        raise Misuse(f"write MODULE:BUS, for example app:bus, not {target!r}")
    if name.endswith(".py") or "/" in name:
        dotted = name.removesuffix(".py").strip("./").replace("/", ".")
        raise Misuse(f"write the module's name instead of its file: {dotted}:{attribute}")
    module = _import(name, directory.absolute())
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            buses = [key for key, candidate in vars(module).items() if isinstance(candidate, Bus)]
            raise Misuse(f"module {name!r} has no {attribute!r}{_hint(attribute, buses)}")
        value = getattr(value, part)
    if factory:
        value = _call(value, target)
    if not isinstance(value, Bus):
        hint = "; is it a function that returns one? then add --factory" if callable(value) and not factory else ""
        raise Misuse(f"{target} is not a Bus, but of type {type(value).__name__}{hint}")
    return App(target, value, module)


def _import(name: str, directory: Path) -> ModuleType:
    if not directory.is_dir():
        raise Misuse(f"--app-dir: {directory} is not a directory")
    sys.path.insert(0, str(directory))
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise Misuse(f"there is no module {exc.name!r} in {directory} or on the import path") from exc
        raise Misuse(_explain(f"importing {name!r} failed", exc)) from exc
    except (Exception, SystemExit) as exc:
        raise Misuse(_explain(f"importing {name!r} failed", exc)) from exc


def _call(value: Any, target: str) -> Any:
    if not callable(value) or inspect.iscoroutinefunction(value):
        kind = "an async function" if callable(value) else f"of type {type(value).__name__}"
        raise Misuse(f"--factory takes a plain function that returns a Bus; {target} is {kind}")
    try:
        return value()
    except Exception as exc:
        raise Misuse(_explain(f"calling {target} failed", exc)) from exc


def _explain(what: str, exc: BaseException) -> str:
    """Say where in the user's own file it went wrong: our frames and the import system's help nobody."""
    place = _syntax_place(exc) or _last_frame(exc)
    text = exc.msg if isinstance(exc, SyntaxError) else str(exc)
    return f"{what}{f' at {place}' if place else ''}: {type(exc).__name__}{f': {text}' if text else ''}"


def _syntax_place(exc: BaseException) -> str:
    return f"{_short(exc.filename)}:{exc.lineno}" if isinstance(exc, SyntaxError) and exc.filename else ""


def _last_frame(exc: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if not _foreign(f.filename)]
    return f"{_short(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _foreign(filename: str) -> bool:
    return filename.startswith(_FOREIGN) or "/site-packages/" in filename


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def _hint(name: str, known: list[str]) -> str:
    if close := get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; it has {', '.join(sorted(set(known)))}" if known else "; it has none"
