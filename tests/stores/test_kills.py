"""Workers are killed between a handler's effect and its acknowledgement, and each message has exactly one effect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("MSGBUS_TEST_KILLS", "100"))
"""``make kills`` counts to a thousand; here a hundred are enough to notice that something broke."""


@pytest.mark.slow
@pytest.mark.timeout(300 + KILLS)
@pytest.mark.parametrize("kind", ["sqlite3", "psycopg"])
def test_every_message_has_one_effect_whoever_dies(
    kind: str, tmp_path: Path, request: Any, record_property: Callable[[str, Any], None]
) -> None:
    """SIGKILL after the commit and before the acknowledgement, before the commit, and anywhere: one effect each."""
    where = str(tmp_path / "app.db") if kind == "sqlite3" else request.getfixturevalue("postgres")
    # Without coverage: it would follow each of the many processes.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-m", "tests.stores.killing", kind, str(tmp_path), where, str(KILLS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, value in found.items():
        record_property(name, value)
    print(json.dumps(found))
    assert found["deaths"]["acknowledge"] == KILLS
    assert found["last worker"] == 0
    assert (found["without effect"], found["with more than one"], found["dead letters"]) == (0, 0, 0)
