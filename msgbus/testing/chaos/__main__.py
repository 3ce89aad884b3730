"""``python -m msgbus.testing.chaos``: one worker of a run, started by the run."""

from __future__ import annotations

from msgbus.testing.chaos._worker import main

main()
