"""The command ``msgbus``: run an application, send and look at messages, look after dead letters.

One file per group of commands; a command's module, and Rich with it, is imported when the command is used.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from msgbus.cli._app import app  # noqa: PLC0415 - Ctrl-C during the imports is no traceback either

        app()
    except KeyboardInterrupt:
        sys.exit(130)
