"""The PostgreSQL store keeps the contract, on a real server, and so does what stands on it."""

from __future__ import annotations

import pytest

from msgbus.testing import AdapterContract, Harness, StoreContract, StoreHarness
from msgbus.testing._check import load_checks


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def harness(self, brokers):
        return StoreHarness(brokers("postgres").url, unit=1.0)


class TestHandledOnce(AdapterContract):
    """The adapters' checks of idempotency, on the memory broker with this store."""

    @pytest.fixture
    def harness(self, brokers):
        return Harness(url="memory://kit", tick=0.1, lease=2.0, store_url=brokers("postgres").url)

    @pytest.mark.parametrize("check", load_checks("H"), ids=str)
    def test_contract(self, check, harness, record_property):
        super().test_contract(check, harness, record_property)
