"""What goes wrong, told in one line on stderr: never as a traceback."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

import typer

from msgbus._url import scrub
from msgbus.errors import ChannelError, ConfigError, EncodeError, HandlerError, MsgbusError, UnsupportedFeature

__all__ = ["Failed", "Misuse", "report", "warn"]

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

_ClickError: type[Exception] = typer.BadParameter.__mro__[2]
"""The root of what Typer raises about wrong arguments (ClickException); it has no public name in Typer."""


class Misuse(Exception):
    """The command was used wrongly: exit code 2."""


class Failed(Exception):
    """The command could not do it: exit code 1."""


_MISUSES = (Misuse, ConfigError, ChannelError, HandlerError, EncodeError, UnsupportedFeature)


def report(error: BaseException) -> int:
    """Tell what went wrong and return the exit code."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    if isinstance(error, _ClickError):
        _say(getattr(error, "format_message", error.__str__)())
        return MISUSED
    if isinstance(error, Misuse | Failed | MsgbusError):
        _say(str(error) or type(error).__name__)
        return MISUSED if isinstance(error, _MISUSES) else FAILED
    if isinstance(error, OSError):
        _say(str(error))
        return FAILED
    logging.getLogger("msgbus").debug("unexpected", exc_info=error)
    _say(f"unexpected {type(error).__name__}: {error} ({_place(error)}); this is a bug in msgbus")
    return FAILED


def warn(text: str) -> None:
    """Print a warning."""
    print(f"msgbus: warning: {_line(text)}", file=sys.stderr)  # noqa: T201 - a command line tool's voice


def _say(text: str) -> None:
    print(f"msgbus: error: {_line(text)}", file=sys.stderr)  # noqa: T201 - a command line tool's voice


def _line(text: str) -> str:
    return " ".join(scrub(text).split())


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
