"""RabbitMQ and its workers under a short schedule of faults: nothing is lost."""

from __future__ import annotations

import pytest

from tests.adapters.chaos import nothing_is_lost


@pytest.mark.timeout(1200)  # above all deadlines of its own, which tell what is amiss
def test_nothing_is_lost(tmp_path):
    """Every confirmed message is handled or dead-lettered, in order and as often as it may be."""
    nothing_is_lost("rabbitmq", tmp_path, seed=2940)
