"""The examples run, and print what they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.shop.accounts import Dead, Sent, close_books
from examples.shop.generate import ORDERS
from examples.shop.generate import orders as generated_orders

ROOT = Path(__file__).resolve().parents[2]
PRINTED = {
    "01_hello": ["sent", "Hello, Ada!"],
    "02_topic_groups": ["group email got 20 of 20", "group inventory got 20 of 20"],
    "03_request_reply": [
        "pan costs 34.90",
        "the responder failed: LookupError: there is no unicorn",
        "no answer: no answer from request 'reply.price' within 0.3 s; it may still be handled",
    ],
    "04_retry_dead_letters_replay": [
        "p-1: attempt 3 failed",
        'dead: {"id":"p-1","amount":12.5} failed, the bank does not answer',
        'dead: {"id":"p-2","amount":0.0} rejected, nothing to pay',
        "replayed: 1",
        "paid: p-1",
        "dropped: 1",
    ],
    "05_idempotency": ["charged for the message of A-1", "charged for B-1"],
    "06_order_per_key": [f"{who} {list(range(10))}" for who in ("ada", "bob", "cy", "dee")],
    "07_batches": ['dead: {"sensor":"s-0","celsius":-500.0} rejected no thermometer shows that'],
    "08_delays_and_expiry": ["dead: too late expired"],
    "09_sync": ["handled A-1", "('thank you; of that 19.0 is VAT', 202)"],
    "10_testing": ["2 passed; 120 s of retries took less than 5 seconds"],
    "11_middleware": ["paint the fence for acme", "middleware.jobs: quick"],
    "12_types_and_strangers": [
        "cancelled: A-1, changed my mind",
        "placed: A-1, 12.00",
        "invoice for B-7; content type application/octet-stream",
        "dead: the body is not a valid Placed: Invalid JSON: expected ident at line 1 column 2",
    ],
}
LEAVES_SOMETHING = {"03_request_reply", "04_retry_dead_letters_replay", "05_idempotency"}


def run(*arguments: str, url: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run Python from the root of the repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MSGBUS_")}
    environment |= {"MSGBUS_URL": url, "COLUMNS": "120"}
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_every_example_is_checked() -> None:
    """No example is forgotten here."""
    assert sorted(PRINTED) == sorted(path.stem for path in ROOT.glob("examples/*.py"))


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_promises(name: str, tmp_path: Path) -> None:
    """It ends well, also where an earlier run has left something behind, and its lines are there in full."""
    for _ in range(2 if name in LEAVES_SOMETHING else 1):
        done = run(f"examples/{name}.py", url=f"sqlite:///{tmp_path}/example.db")

        assert done.returncode == 0, done.stderr
        assert [line for line in PRINTED[name] if line not in done.stdout.splitlines()] == []
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_is_short(name: str) -> None:
    """An example fits on a screen and says first what it teaches."""
    lines = (ROOT / f"examples/{name}.py").read_text().splitlines()

    assert len(lines) <= 65
    assert lines[0].startswith('"""')


def test_the_orders_file_is_what_its_script_writes() -> None:
    """The shipped orders are the generated ones, and more than a thousand."""
    shipped = [json.loads(line) for line in ORDERS.read_text(encoding="utf-8").splitlines()]

    assert shipped == generated_orders()
    assert len(shipped) > 1_000


def test_the_demo_accounts_for_every_order(tmp_path: Path) -> None:
    """The demo ends well, and with exactly the numbers that are in the orders file."""
    done = run("-m", "examples.shop", url=f"sqlite:///{tmp_path}/shop.db", timeout=100)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,203 sent = 1,150 paid + 29 dead letters + 24 duplicates" in done.stdout
    assert "in order for each of 313 customers" in done.stdout


def test_the_demo_fails_when_an_order_is_unaccounted_for(tmp_path: Path) -> None:
    """With no worker, nothing is handled: the demo says so and exits with an error."""
    arguments = ("-m", "examples.shop", "--workers", "0", "--timeout", "1")
    done = run(*arguments, url=f"sqlite:///{tmp_path}/shop.db")

    assert done.returncode == 1
    assert "WS-004200: never handled" in done.stdout


def test_the_demo_refuses_a_broker_that_lives_in_one_process() -> None:
    """The memory broker cannot be shared by workers; one line says so."""
    done = run("-m", "examples.shop", url="memory://")

    assert done.returncode == 2
    assert "choose another MSGBUS_URL" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([], "A: never handled"),
        (["charged"], "A: charged 2 times instead of once"),
        (["confirmation mailed"], "A: confirmation mailed 2 times instead of once"),
    ],
)
def test_the_books_find_what_does_not_add_up(entries: list[str], problem: str) -> None:
    """A missing or doubled effect is a problem, named with its order."""
    right = ["placed", "confirmation mailed", "stock reserved", "analysed", "charged", "receipt mailed", "dispatched"]
    ledger = [{"what": what, "order": "A", "at": 1.0} for what in (right + entries if entries else [])]

    assert problem in close_books([Sent("A", "c")], ledger, [], ordered=True).problems


def test_the_books_find_a_payment_out_of_order() -> None:
    """A customer's second order that is paid before the first is a problem."""
    sent = [Sent("A", "c"), Sent("B", "c")]
    ledger = [{"what": "charged", "order": "B", "at": 1.0}, {"what": "charged", "order": "A", "at": 2.0}]

    assert "c: paid out of order: A, B" in close_books(sent, ledger, [], ordered=True).problems


def test_the_books_find_an_order_with_two_fates() -> None:
    """An order that was paid and is a dead letter as well is a problem."""
    dead = [Dead("payments", "A", "failed", "", 5)]
    ledger = [{"what": "charged", "order": "A", "at": 1.0}]

    problems = close_books([Sent("A", "c")], ledger, dead, ordered=True).problems

    assert "A: charged 1 times instead of never" in problems
