"""Notice changed Python files by looking at their modification times: no dependency, and good enough for a project."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["Watch"]

_NOT_THE_PROJECTS = {"__pycache__", "node_modules", "site-packages"}


class Watch:
    """The Python files under a directory, and what they were like at the last look.

    Args:
        root: The directory; hidden directories and virtual environments in it are left out.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = self._look()

    def changed(self) -> str | None:
        """Return the name of a file that was changed, made or deleted since the last call, or None."""
        before, self._seen = self._seen, self._look()
        different = before.items() ^ self._seen.items()
        return min((os.path.relpath(path, self._root) for path, _ in different), default=None)

    def _look(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for directory, folders, files in os.walk(self._root):
            folders[:] = [f for f in folders if _is_the_projects(directory, f)]
            for name in files:
                if name.endswith(".py"):
                    path = os.path.join(directory, name)  # noqa: PTH118 - thousands of Path objects twice a second
                    with suppress(OSError):  # deleted since the directory was read, or not ours to look at
                        found[path] = os.stat(path).st_mtime_ns  # noqa: PTH116
        return found


def _is_the_projects(directory: str, folder: str) -> bool:
    if folder.startswith(".") or folder in _NOT_THE_PROJECTS:
        return False
    return not Path(directory, folder, "pyvenv.cfg").exists()
