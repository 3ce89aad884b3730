"""Kafka and its workers under a short schedule of faults: nothing is lost."""

from __future__ import annotations

from tests.adapters.chaos import nothing_is_lost


def test_nothing_is_lost(tmp_path):
    """Every confirmed message is handled or dead-lettered, in order and as often as it may be."""
    nothing_is_lost("kafka", tmp_path, seed=2940)
