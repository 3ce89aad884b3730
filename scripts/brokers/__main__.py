"""``python -m scripts.brokers [--install] [NAME,NAME...]``: start brokers, print their URLs, wait for Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING

from scripts.brokers import BROKERS, BrokerError, broker_class, start, url_variable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Install or run the brokers asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.brokers", description=__doc__)
    parser.add_argument("names", nargs="?", default=",".join(BROKERS), help="comma-separated; default: all")
    parser.add_argument("--install", action="store_true", help="install what they need, and exit")
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.names.split(",") if name.strip()]
    try:
        return _install(names) if options.install else _run(names)
    except BrokerError as exc:
        print(exc, file=sys.stderr)
        return 1


def _install(names: list[str]) -> int:
    failures = 0
    for name in names:
        try:
            broker_class(name).install()
        except BrokerError as exc:
            failures += 1
            print(exc, file=sys.stderr)
        else:
            print(f"{name}: installed", flush=True)
    return 1 if failures else 0


def _run(names: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` stops them as Ctrl-C does
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                began = time.monotonic()
                broker = stack.enter_context(start(name))
                print(f"export {url_variable(name)}={broker.url!r}", flush=True)
                print(f"# {name} took {time.monotonic() - began:.1f} s; its log: {broker.log}", file=sys.stderr)
            print("# all running; Ctrl-C stops them and removes their data", file=sys.stderr, flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print("# stopping", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
