"""The books: what became of every order, from the orders file, the workers' ledgers and the dead letters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from examples.shop.ledger import Entry

PER_PLACED = ("placed", "confirmation mailed", "stock reserved", "analysed")
PER_PAID = ("charged", "receipt mailed", "dispatched")


@dataclass(frozen=True)
class Sent:
    """One line of the orders file."""

    order: str
    customer: str | None


@dataclass(frozen=True)
class Dead:
    """One dead letter."""

    queue: str
    order: str
    reason: str
    detail: str
    attempts: int


@dataclass
class Books:
    """What became of the orders.

    Attributes:
        sent: Messages that were sent: the lines of the file.
        duplicates: How many of them repeat an order.
        done: How often each effect happened.
        dead: The dead letters.
        problems: What does not add up; empty when every order is accounted for.
        latencies: How long each price request took, in milliseconds.
        customers: How many customers' payments were compared with the order in which they had ordered.
    """

    sent: int
    duplicates: int
    done: Counter[str]
    dead: Sequence[Dead]
    problems: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    customers: int = 0


def close_books(sent: Sequence[Sent], entries: Iterable[Entry], dead: Sequence[Dead], *, ordered: bool) -> Books:
    """Account for every order: each was paid for exactly once with all that follows from it, or is a dead letter."""
    effects: dict[str, Counter[str]] = defaultdict(Counter)
    charged_at: dict[str, float] = {}
    latencies = []
    for entry in entries:
        effects[entry["order"]][entry["what"]] += 1
        if entry["what"] == "charged":
            charged_at[entry["order"]] = entry["at"]
        elif entry["what"] == "quoted":
            latencies.append(entry["ms"])
    distinct = {one.order: one for one in sent}
    buried: dict[str, list[Dead]] = defaultdict(list)
    for letter in dead:
        buried[letter.order].append(letter)
    done = sum(effects.values(), Counter[str]())
    books = Books(len(sent), len(sent) - len(distinct), done, dead, latencies=sorted(latencies))
    for stranger in sorted((effects.keys() | buried.keys()) - distinct.keys()):
        books.problems.append(f"{stranger}: nobody ordered this")
    for order in distinct:
        books.problems += [f"{order}: {problem}" for problem in _problems(effects[order], buried[order])]
    if ordered:
        _check_sequence(books, list(distinct.values()), charged_at)
    return books


def _problems(effects: Counter[str], dead: Sequence[Dead]) -> Iterable[str]:
    """Tell what is wrong with one order."""
    if not effects and not dead:
        yield "never handled"
        return
    queues = [letter.queue for letter in dead]
    if len(dead) > 1:
        yield f"{len(dead)} dead letters, in {', '.join(queues)}"
    placed = 0 if "orders" in queues else 1
    paid = placed if "payments" not in queues else 0
    for wanted, names in ((placed, PER_PLACED), (paid, PER_PAID)):
        for name in names:
            if effects[name] != wanted:
                yield f"{name} {effects[name]} times instead of {'once' if wanted else 'never'}"


def _check_sequence(books: Books, sent: Sequence[Sent], charged_at: dict[str, float]) -> None:
    """Compare the order of each customer's payments with the order of their orders."""
    per_customer: dict[str, list[str]] = defaultdict(list)
    for one in sent:
        if one.customer is not None and one.order in charged_at:
            per_customer[one.customer].append(one.order)
    for customer, orders in per_customer.items():
        if orders != sorted(orders, key=charged_at.__getitem__):
            books.problems.append(f"{customer}: paid out of order: {', '.join(orders)}")
    books.customers = len(per_customer)
