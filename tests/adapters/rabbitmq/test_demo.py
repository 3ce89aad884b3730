"""The demo runs on RabbitMQ with no line of it changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(400)
def test_the_demo_accounts_for_every_order(broker):
    environment = os.environ | {"MSGBUS_URL": broker.url, "COLUMNS": "120"}
    command = [sys.executable, "-W", "error", "-m", "examples.shop", "--timeout", "240"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=350, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,203 sent = 1,150 paid + 29 dead letters + 24 duplicates" in done.stdout
    assert "in order for each of 313 customers" in done.stdout
