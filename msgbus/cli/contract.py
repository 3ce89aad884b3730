"""``msgbus contract``: prove an adapter against a running broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from msgbus._registry import adapter_class
from msgbus.adapter import AdapterConfig, BusURL
from msgbus.cli import _options as options
from msgbus.cli._broker import execute
from msgbus.cli._errors import Failed, Misuse
from msgbus.cli._output import print_json, print_table, progress, say
from msgbus.testing._check import load_checks
from msgbus.testing.harness import Harness
from msgbus.testing.runner import Result, run_contract

app = typer.Typer()

Url = Annotated[str, typer.Argument(metavar="URL", help="A broker that may be filled with rubbish.")]
Sections = Annotated[
    str | None,
    typer.Option("--sections", metavar="A,C", help="Only these sections' checks.", show_default=False),
]


@app.command("contract")
def contract(url: Url, sections: Sections = None, as_json: options.AsJSON = False) -> None:
    """Run the contract kit against a broker, and print which clauses it keeps.

    Example: msgbus contract nats://localhost:4222 --sections A,C
    """
    chosen = _sections(sections)
    if url == "memory://":
        url = "memory://contract"  # without a name, each adapter of a check would be a broker of its own
    execute(_reach(BusURL.parse(url)))
    done = 0
    with progress("contract", len(load_checks(chosen))) as advance:

        def on_result(_: Result) -> None:
            nonlocal done
            done += 1
            advance(done)

        results = execute(run_contract(Harness(url=url), on_result=on_result, sections=chosen))
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        _print(results)
    if failed := [result.id for result in results if result.status == "failed"]:
        raise Failed(f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}")


async def _reach(url: BusURL) -> None:
    """Raise once what would otherwise fail every check: no adapter, a wrong option, no broker."""
    adapter = adapter_class(url)(url, AdapterConfig())
    try:
        await adapter.open()
    finally:
        await adapter.aclose()


def _sections(text: str | None) -> list[str] | None:
    if text is None:
        return None
    known = sorted({check.section for check in load_checks()})
    chosen = [section.strip().upper() for section in text.split(",") if section.strip()]
    if unknown := [section for section in chosen if section not in known]:
        raise Misuse(f"--sections: there is no section {unknown[0]!r}; there are {', '.join(known)}")
    return chosen or None


def _print(results: Sequence[Result]) -> None:
    print_table(("check", "result", "clause"), [_row(result) for result in results], whole=("check", "result"))
    counts = Counter(result.status for result in results)
    say(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))


def _row(result: Result) -> tuple[str, str, str]:
    note = f" ({result.reason})" if result.reason else ""
    again = f" ({result.duplicates} duplicates)" if result.duplicates else ""
    return result.id, result.status, f"{result.clause}{note}{again}"
