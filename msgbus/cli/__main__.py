"""``python -m msgbus.cli``."""

from __future__ import annotations

from msgbus.cli import main

main()
