"""Runs the checks without any test framework, for ``msgbus contract URL`` and for those who have another one."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from msgbus.testing._check import Check, Skipped, load_checks, load_store_checks, unmet
from msgbus.testing.case import Case
from msgbus.testing.harness import Harness, StoreHarness
from msgbus.testing.store_case import StoreCase

__all__ = ["Account", "Result", "prove", "prove_store", "run_contract", "run_store_contract"]

Status = Literal["passed", "failed", "skipped", "refused"]


@dataclass(frozen=True, slots=True)
class Account:
    """What a check that passed has to tell.

    Attributes:
        duplicates: How many duplicates it saw.
        notes: Its measurements.
    """

    duplicates: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check.

    Attributes:
        id: The check's id with its name, e.g. ``C3-nack-with-delay-is-never-early``.
        clause: What it proves.
        status: ``refused`` when the adapter does not have the feature and says so by name, as it must.
        reason: Why it failed or was skipped.
        detail: The traceback of a failure.
        duration: Seconds it took.
        duplicates: How many duplicates it saw.
        notes: Its measurements.
    """

    id: str
    clause: str
    status: Status
    reason: str = ""
    detail: str = ""
    duration: float = 0.0
    duplicates: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


async def prove(check: Check, harness: Harness) -> Account:
    """Run one check on an adapter.

    Raises:
        Skipped: It does not apply.
        AssertionError: The adapter does not keep the clause.
    """
    async with asyncio.timeout(check.timeout * harness.patience), Case(harness) as case:
        if reason := unmet(check.needs, case.capabilities, harness):
            raise Skipped(reason)
        await check.function(case)
    bound = check.duplicates + harness.duplicates
    assert case.duplicates <= bound, f"{case.duplicates} messages came again after they had been acked, at most {bound}"
    return Account(case.duplicates, case.notes)


async def prove_store(check: Check, harness: StoreHarness) -> Account:
    """Run one check on a store; raises as `prove` does."""
    async with asyncio.timeout(check.timeout * harness.patience), StoreCase(harness) as case:
        await check.function(case)
    return Account()


async def run_contract(
    harness: Harness,
    *,
    on_result: Callable[[Result], None] | None = None,
    sections: Iterable[str] | None = None,
) -> list[Result]:
    """Run the contract for adapters, one check after the other.

    Args:
        harness: The broker.
        on_result: Called with each result as soon as it is there.
        sections: Letters of sections; all by default.
    """
    return await _run([(check, prove(check, harness)) for check in load_checks(sections)], on_result)


async def run_store_contract(
    harness: StoreHarness, *, on_result: Callable[[Result], None] | None = None
) -> list[Result]:
    """Run the contract for idempotency stores, one check after the other."""
    return await _run([(check, prove_store(check, harness)) for check in load_store_checks()], on_result)


async def _run(runs: list[Any], on_result: Callable[[Result], None] | None) -> list[Result]:
    results = []
    for check, run in runs:
        result = await _result(check, run)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


async def _result(check: Check, run: Any) -> Result:
    started = time.perf_counter()
    status: Status = "refused" if check.refusal else "passed"
    reason = detail = ""
    account = Account()
    try:
        account = await run
    except Skipped as exc:
        status, reason = "skipped", str(exc)
    except Exception as exc:  # noqa: BLE001 - whatever a check raises is its result
        status, reason = "failed", _reason(exc)
        detail = "".join(traceback.format_exception(exc))
    took = time.perf_counter() - started
    return Result(str(check), check.clause, status, reason, detail, took, account.duplicates, account.notes)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if text := str(error).partition("\n")[0]:
        return text
    if isinstance(error, TimeoutError):
        return "the check took too long"
    frames = traceback.extract_tb(error.__traceback__)
    return f"this does not hold: {frames[-1].line}" if frames else type(error).__name__
