"""The memory adapter and store keep the contract."""

from __future__ import annotations

import pytest

from msgbus.testing import AdapterContract, Harness, StoreContract, StoreHarness, VirtualClock


class TestMemoryAdapter(AdapterContract):
    @pytest.fixture
    def harness(self):
        return Harness(url="memory://kit", tick=0.05, lease=2.5, virtual=True)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def harness(self):
        return StoreHarness("memory://kit", clock=VirtualClock(), unit=1.0)
