"""The demo: sends a day's orders to worker processes and shows what became of each."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.shop.accounts import Books, Sent
from examples.shop.app import bus
from examples.shop.ledger import LedgerReader
from examples.shop.model import ORDERED
from examples.shop.report import show
from examples.shop.watch import Watch, progress_bars
from examples.shop.workers import Workers
from msgbus import BusURL, MsgbusError, Queue
from msgbus.errors import UnsupportedFeature


def customer_of(order: dict[str, Any]) -> str | None:
    """Return the customer's id, if the order has one."""
    customer = order.get("customer", {})
    return str(customer["id"]) if "id" in customer else None


# The storefront hands over whatever its customers typed in: it knows the queue's name, not the workers' types.
incoming = Queue("orders", dict, key=customer_of if ORDERED else None)


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.shop", description=__doc__)
    parser.add_argument("--orders", type=Path, default=Path(__file__).with_name("orders.jsonl"), help="JSON lines")
    parser.add_argument("--workers", type=int, default=2, help="how many worker processes to start (default: 2)")
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds after which to give up (default: 90)")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="msgbus-shop-", ignore_cleanup_errors=True) as folder:
        try:
            configure(Path(folder))
            books, seconds = asyncio.run(demo(Path(folder), arguments))
        except UnsupportedFeature as exc:
            console.print(f"The demo cannot run: {exc}. MSGBUS_DEMO_ORDERED=0 does without order per customer.")
            return 2
        except (MsgbusError, OSError) as exc:
            console.print(f"The demo cannot run: {exc}")
            return 2
        except KeyboardInterrupt:
            console.print("Stopped.")
            return 130
    broker = str(BusURL.parse(os.environ["MSGBUS_URL"])).replace(f"{folder}/", "")
    show(console, books, broker=broker, workers=arguments.workers, seconds=seconds)
    return 1 if books.problems else 0


def configure(folder: Path) -> None:
    """Fill in the environment, for this process and the workers, where nothing was chosen."""
    environment = os.environ
    url = environment.setdefault("MSGBUS_URL", f"sqlite:///{folder}/shop.db")
    if url.startswith("memory:"):
        raise MsgbusError("memory:// lives in one process, and the demo is several; choose another MSGBUS_URL")
    if not url.startswith("sqlite:"):
        environment.setdefault("MSGBUS_IDEMPOTENCY_URL", f"sqlite:///{folder}/handled.db")
    environment.setdefault("MSGBUS_NAMESPACE", f"shop-{secrets.token_hex(3)}")  # no run meets another one's messages
    environment["MSGBUS_DEMO_FOLDER"] = str(folder)


async def demo(folder: Path, arguments: argparse.Namespace) -> tuple[Books, float]:
    """Start the workers and send all orders; return the books once each is accounted for, and the seconds it took."""
    sent = [Sent(order["id"], customer_of(order)) async for order in read(arguments.orders)]
    watch = Watch(sent, LedgerReader(folder))
    started = time.monotonic()
    async with bus:
        async with Workers(arguments.workers, folder) as workers:
            sending = asyncio.create_task(bus.send_many(incoming, read(arguments.orders)))
            try:
                with progress_bars() as bars:
                    await watch.until_settled(bars, sending, workers, started + arguments.timeout)
            finally:
                sending.cancel()
            seconds = time.monotonic() - started
        books, _ = await watch.look()  # now that the workers have ended, nothing can be added any more
        return books, seconds


async def read(path: Path) -> AsyncIterator[dict[str, Any]]:
    """Yield the orders of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
