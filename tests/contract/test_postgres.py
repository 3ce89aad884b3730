"""The PostgreSQL store keeps the contract, on a real server."""

from __future__ import annotations

import pytest

from msgbus.testing import StoreContract, StoreHarness


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def harness(self, brokers):
        return StoreHarness(brokers("postgres").url)
