"""Tools that prove things: the contract kit for adapters and stores, a virtual clock, a bus for application tests.

`AdapterContract` and `StoreContract` are test classes to subclass; their checks also run without pytest, by
`run_contract` and ``msgbus contract URL``. Everything is imported when it is first used, so that an application that
only wants the clock needs neither pytest nor Hypothesis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msgbus.testing.case import Case
    from msgbus.testing.clock import VirtualClock
    from msgbus.testing.contract import AdapterContract, StoreContract
    from msgbus.testing.faults import FaultProxy
    from msgbus.testing.harness import Harness, StoreHarness
    from msgbus.testing.processes import WorkerProcess
    from msgbus.testing.runner import Result, run_contract
    from msgbus.testing.testbus import TestBus

_HOMES = {
    "AdapterContract": "contract",
    "Case": "case",
    "FaultProxy": "faults",
    "Harness": "harness",
    "Result": "runner",
    "StoreContract": "contract",
    "StoreHarness": "harness",
    "TestBus": "testbus",
    "VirtualClock": "clock",
    "WorkerProcess": "processes",
    "run_contract": "runner",
}

__all__ = [
    "AdapterContract",
    "Case",
    "FaultProxy",
    "Harness",
    "Result",
    "StoreContract",
    "StoreHarness",
    "TestBus",
    "VirtualClock",
    "WorkerProcess",
    "run_contract",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
