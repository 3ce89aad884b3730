"""The command ``msgbus``: run an application, send and look at messages, look after dead letters.

One file per group of commands; a command's module, and Rich with it, is imported when the command is used.
"""

from __future__ import annotations

from msgbus.cli._app import app, main

__all__ = ["app", "main"]
