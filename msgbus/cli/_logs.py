"""Readable logs on stderr, for applications that do not set up logging themselves."""

from __future__ import annotations

import logging
import sys

__all__ = ["configure_logs", "log"]

log = logging.getLogger("msgbus")

_TALKATIVE = ("aiokafka",)
"""Client libraries that tell at INFO what we tell, too; ``--log-level info`` shows it all."""
_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1", logging.DEBUG: "2"}


class _Formatter(logging.Formatter):
    """One line per record, its level in colour on a terminal."""

    def __init__(self, worker: str, *, colours: bool) -> None:
        number = f" [{worker}]" if worker else ""
        super().__init__(f"%(asctime)s{number} %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        self._colours = colours

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        text = super().formatMessage(record)
        colour = _COLOURS.get(record.levelno) if self._colours else None
        return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def configure_logs(level: str | None, worker: str = "") -> None:
    """Log to stderr, unless the application's module has set up logging.

    Args:
        level: The least level that is logged; ``info``, or what the application has set, by default.
        worker: The worker's number among several.
    """
    root = logging.getLogger()
    if level is None and not root.handlers:
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
    if level is not None or not root.handlers:
        root.setLevel((level or "info").upper())
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(worker, colours=sys.stderr.isatty()))
    root.addHandler(handler)
