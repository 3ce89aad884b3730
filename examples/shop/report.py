"""The summary at the end of the demo."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from examples.shop.accounts import Books, Dead

SHOWN = 20


def show(console: Console, books: Books, *, broker: str, workers: int, seconds: float) -> None:
    """Print what happened, and whether it adds up."""
    console.print(_summary(books, broker, workers, seconds))
    if books.dead:
        console.print(_dead_letters(books.dead))
    if not books.problems:
        paid, dead = books.done["charged"], len(books.dead)
        console.print(
            f"[bold green]Every order is accounted for:[/] {books.sent:,} sent = {paid:,} paid "
            f"+ {dead:,} dead letters + {books.duplicates:,} duplicates."
        )
        return
    console.print(f"[bold red]{len(books.problems):,} things do not add up:[/]")
    for problem in books.problems[:SHOWN]:
        console.print(f"  {problem}", highlight=False)
    if len(books.problems) > SHOWN:
        console.print(f"  … and {len(books.problems) - SHOWN:,} more")


def _summary(books: Books, broker: str, workers: int, seconds: float) -> Table:
    table = Table(title=f"Orders processed by {workers} workers over {broker}", box=box.ROUNDED, show_header=False)
    table.add_column("what")
    table.add_column("how many", justify="right")
    table.add_column("note", style="dim")
    done = books.done
    table.add_row("orders sent", f"{books.sent:,}", "lines of the orders file")
    table.add_row("duplicates absorbed", f"{books.duplicates:,}", "the same order sent twice")
    table.add_row("orders placed", f"{done['placed']:,}")
    table.add_row("paid", f"{done['charged']:,}", _sequence_note(books))
    table.add_row("payments that failed", f"{done['payment failed']:,}", "tried again, with backoff")
    table.add_row("e-mails", f"{done['confirmation mailed'] + done['receipt mailed']:,}", "confirmations and receipts")
    table.add_row("stock reservations", f"{done['stock reserved']:,}", f"{done['dispatched']:,} dispatched")
    table.add_row("analysed in batches", f"{done['analysed']:,}")
    table.add_row("price requests answered", f"{done['quoted']:,}", _latency_note(books.latencies))
    table.add_row("dead letters", f"{len(books.dead):,}", "listed below")
    table.add_row("seconds", f"{seconds:.1f}", f"{books.sent / seconds:,.0f} orders/s")
    return table


def _sequence_note(books: Books) -> str:
    return f"in order for each of {books.customers:,} customers" if books.customers else "not ordered on this broker"


def _latency_note(latencies: list[float]) -> str:
    if not latencies:
        return ""
    return f"median {latencies[len(latencies) // 2]:.0f} ms, 99 % within {latencies[len(latencies) * 99 // 100]:.0f} ms"


def _dead_letters(dead: Sequence[Dead]) -> Table:
    groups: dict[tuple[str, str, str], list[Dead]] = defaultdict(list)
    for letter in dead:
        groups[letter.queue, letter.reason, letter.detail].append(letter)
    table = Table(title="Dead letters", box=box.ROUNDED)
    for name in ("queue", "reason", "detail", "attempts", "orders"):
        table.add_column(name, justify="right" if name in {"attempts", "orders"} else "left")
    for (queue, reason, detail), letters in sorted(groups.items()):
        attempts = Counter(letter.attempts for letter in letters).most_common(1)[0][0]
        table.add_row(queue, reason, detail, str(attempts), str(len(letters)))
    return table
