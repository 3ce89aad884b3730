"""What a check is: a plain async function that proves one clause, with the capabilities it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from msgbus.adapter import Capabilities
    from msgbus.testing.harness import Harness

__all__ = ["Check", "Skipped", "check", "load_checks", "load_store_checks", "unmet"]

_MODULES = (
    "round_trip",
    "messages",
    "fan_out",
    "settling",
    "retry",
    "dead_letters",
    "order",
    "leases",
    "idempotency",
    "lifecycle",
    "restarts",
    "workers",
    "outages",
    "flow",
    "requests",
    "topology",
    "refusals",
    "model",
)
_STORE_MODULES = ("stores",)

F = TypeVar("F", bound=Callable[..., Awaitable[None]])


class Skipped(Exception):
    """The check does not apply; the text names the missing capability or hook."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        id: Its place in the contract, e.g. ``C3``; the letter is the section.
        name: Its function's name with hyphens.
        clause: What it proves.
        needs: What it needs, see `unmet`.
        duplicates: How many duplicates it puts up with, beyond the harness's own allowance.
        timeout: Seconds it may take in all.
        function: Proves the clause, or raises.
    """

    id: str
    name: str
    clause: str
    needs: tuple[str, ...]
    duplicates: int
    timeout: float
    function: Callable[[Any], Awaitable[None]]

    @property
    def section(self) -> str:
        """The section of the contract."""
        return self.id[0]

    @property
    def refusal(self) -> bool:
        """Whether it proves that something undeclared is refused."""
        return any(need.startswith("!") for need in self.needs)

    def __str__(self) -> str:
        return f"{self.id}-{self.name}"


def check(id: str, *, needs: str = "", duplicates: int = 0, timeout: float = 60.0) -> Callable[[F], F]:
    """Mark a function as a check; its docstring is the clause.

    Args:
        id: Its place in the contract.
        needs: Capabilities and hooks, separated by spaces, see `unmet`.
        duplicates: How many duplicates it puts up with.
        timeout: Seconds it may take in all, before the harness's patience.
    """

    def mark(function: F) -> F:
        name = function.__name__.replace("_", "-")
        clause = " ".join((function.__doc__ or "").split())
        function.__check__ = Check(id, name, clause, tuple(needs.split()), duplicates, timeout, function)  # type: ignore[attr-defined]
        return function

    return mark


def load_checks(sections: Iterable[str] | None = None) -> list[Check]:
    """Return the checks for adapters in the contract's order.

    Args:
        sections: Letters of sections; all by default.
    """
    wanted = None if sections is None else set(sections)
    return [c for c in _load(_MODULES) if wanted is None or c.section in wanted]


def load_store_checks() -> list[Check]:
    """Return the checks for idempotency stores."""
    return _load(_STORE_MODULES)


def _load(modules: Iterable[str]) -> list[Check]:
    found = [
        value.__check__
        for module in modules
        for value in vars(import_module(f"msgbus.testing.checks.{module}")).values()
        if hasattr(value, "__check__")
    ]
    return sorted(found, key=lambda c: (c.section, int(c.id[1:])))


def unmet(needs: Iterable[str], capabilities: Capabilities, harness: Harness) -> str:
    """Return why a check with these *needs* does not apply, or nothing if it does.

    A need is a capability (``max_delay``), a capability with a value (``order=key``), one that must be undeclared
    (``!browse``), or something of the harness (``hook:restart``).
    """
    for need in needs:
        if need.startswith("hook:"):
            if not harness.supplies(need[5:]):
                return f"the harness does not supply {need[5:]}"
        elif need.startswith("!"):
            if _declared(need[1:], capabilities):
                return f"{need[1:]} is declared"
        elif not _declared(need, capabilities):
            return f"{need} is not declared"
    return ""


def _declared(need: str, capabilities: Capabilities) -> bool:
    name, _, value = need.partition("=")
    declared = getattr(capabilities, name)
    return bool(declared == value) if value else declared not in (False, 0, "none")
