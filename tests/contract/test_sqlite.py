"""The SQLite adapter and store keep the contract."""

from __future__ import annotations

import pytest

from msgbus.testing import AdapterContract, Harness, StoreContract, StoreHarness, VirtualClock


class TestSQLiteAdapter(AdapterContract):
    @pytest.fixture
    def harness(self, tmp_path):
        return Harness(url=f"sqlite:///{tmp_path}/bus.db", tick=0.1, lease=2.5, virtual=True)


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def harness(self, tmp_path):
        return StoreHarness(f"sqlite:///{tmp_path}/bus.db", clock=VirtualClock(), unit=1.0)
