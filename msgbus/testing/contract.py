"""The contract as pytest classes: subclass, give a harness, and every check is a test of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

# Before they are imported, or their assertions would not show what they compared (which is all that is lost if
# somebody imported them first).
pytest.register_assert_rewrite(
    *({f"msgbus.testing.{name}" for name in ("checks", "case", "tap", "model")} - sys.modules.keys())
)

from msgbus.testing._check import Check, Skipped, load_checks, load_store_checks  # noqa: E402
from msgbus.testing.harness import Harness, StoreHarness  # noqa: E402
from msgbus.testing.runner import Account, prove, prove_store  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["AdapterContract", "StoreContract"]


class AdapterContract:
    """The contract for adapters.

    ::

        class TestMine(AdapterContract):
            url = "mine://localhost:1234"

    or, to say more about the broker, override the fixture::

        @pytest.fixture
        def harness(self, my_broker):
            return Harness(url=my_broker.url, tick=1.0)
    """

    url: ClassVar[str] = ""

    @pytest.fixture
    def harness(self) -> Harness:
        """Return what the checks run against."""
        return Harness(url=self.url)

    @pytest.mark.parametrize("check", load_checks(), ids=str)
    def test_contract(self, check: Check, harness: Harness, record_property: Callable[[str, Any], None]) -> None:
        """The adapter keeps this clause."""
        _run(prove(check, harness), record_property)


class StoreContract:
    """The contract for idempotency stores; used like `AdapterContract`."""

    url: ClassVar[str] = ""

    @pytest.fixture
    def harness(self) -> StoreHarness:
        """Return what the checks run against."""
        return StoreHarness(self.url)

    @pytest.mark.parametrize("check", load_store_checks(), ids=str)
    def test_contract(self, check: Check, harness: StoreHarness, record_property: Callable[[str, Any], None]) -> None:
        """The store keeps this clause."""
        _run(prove_store(check, harness), record_property)


def _run(proof: Awaitable[Account], record_property: Callable[[str, Any], None]) -> None:
    async def main() -> Account:
        return await proof

    try:
        account = asyncio.run(main())
    except Skipped as exc:
        pytest.skip(str(exc))
    record_property("duplicates", account.duplicates)
    for name, value in account.notes.items():
        record_property(name, value)
