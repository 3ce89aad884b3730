"""SQS and SNS (MiniStack) and their workers under a short schedule of faults: nothing is lost."""

from __future__ import annotations

from tests.adapters.chaos import nothing_is_lost


def test_nothing_is_lost(tmp_path, monkeypatch):
    """Every confirmed message is handled or dead-lettered, in order and as often as it may be."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")  # the server checks none, and boto3 refuses to work without
    nothing_is_lost("ministack", tmp_path, seed=216)
