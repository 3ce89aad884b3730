"""The command itself: which commands there are, and how what goes wrong is told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from msgbus.cli._errors import report

__all__ = ["app"]

_COMMANDS = {
    "run": "run",
    "send": "publish",
    "publish": "publish",
    "request": "publish",
    "tail": "tail",
    "seek": "seek",
    "dlq": "dlq",
    "status": "status",
    "check": "check",
    "store": "store",
    "contract": "contract",
    "version": "version",
}
"""Each command's module."""


class _Commands(TyperGroup):
    """Imports a command's module when it is used, and turns every error into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command."""
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        return typer.main.get_group(import_module(f"msgbus.cli.{module}").app).commands[cmd_name]

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> Any:
        """Run, and exit with 0, 1 (it failed), 2 (it was used wrongly) or 130 (Ctrl-C)."""
        arguments = sys.argv[1:] if args is None else list(args)
        extra |= {"prog_name": "msgbus", "standalone_mode": False}
        try:
            code = super().main(arguments or ["--help"], **extra)
        except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - a user is told in one line, whatever it is
            code = report(exc)
        sys.exit(code or 0)


app = typer.Typer(cls=_Commands, add_completion=False)


@app.callback()
def msgbus() -> None:
    """One API for queues, topics and requests on every broker.

    The broker is the one of --url, else of MSGBUS_URL, else sqlite:///msgbus.db in this directory.
    """
