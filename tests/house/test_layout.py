"""The house rules that a linter does not know."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import msgbus
from msgbus import adapter, errors, store

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("msgbus/**/*.py"), *ROOT.glob("adapters/**/*.py")])
MAX_FILE = 400
MAX_FUNCTION = 60
FRONT_DOORS = [msgbus, adapter, errors, store]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    """One idea per file: no file beyond 400 lines, no function beyond 60 lines of code."""
    text = path.read_text()

    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _code_lines(node) <= MAX_FUNCTION, f"{node.name} in line {node.lineno}"


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("module", FRONT_DOORS, ids=lambda m: m.__name__)
def test_all_lists_exactly_what_is_there(module: object) -> None:
    """Every name in __all__ exists, is documented, and is listed once."""
    names = module.__all__  # type: ignore[attr-defined]

    assert sorted(set(names)) == sorted(names)
    for name in names:
        value = getattr(module, name)
        if isinstance(value, type) and value.__module__.startswith("msgbus"):
            assert value.__doc__, name


def test_every_error_is_in_the_drawn_tree() -> None:
    """The tree in the docstring of msgbus.errors shows each class under its base."""
    drawn = re.findall(r"^[ │]*[├└]── (\w+)|^    (MsgbusError)", errors.__doc__ or "", re.MULTILINE)
    names = {a or b for a, b in drawn}

    assert set(errors.__all__) == names


@pytest.mark.parametrize("path", [p for p in SOURCES if "adapters" in p.parts], ids=_name)
def test_adapters_import_only_the_public_contract(path: Path) -> None:
    """What our adapters can do, a stranger's can: they see msgbus.adapter, msgbus.store and msgbus.errors only."""
    allowed = {"msgbus.adapter", "msgbus.store", "msgbus.errors"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.split(".")[0] == "msgbus"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "msgbus":
            assert node.module in allowed, node.lineno


def test_importing_msgbus_pulls_in_nothing_heavy() -> None:
    """Importing msgbus loads no client library, no database, no settings library and no command line."""
    heavy = {"pydantic_settings", "typer", "rich", "hypothesis", "pytest", "kombu", "aiokafka", "nats", "boto3"}
    heavy |= {"sqlite3", "redis", "psycopg", "sqlalchemy"}
    code = f"import sys, msgbus; print(*({heavy!r} & set(sys.modules)))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it has imports, too
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)

    assert done.stdout.strip() == ""


def test_the_changelog_knows_the_version() -> None:
    """The version that is built is described in the changelog."""
    assert f"## {msgbus.__version__}" in (ROOT / "CHANGELOG.md").read_text() or (
        "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_entry_points_name_what_exists() -> None:
    """Every adapter and store entry point loads where its client library is installed."""
    from importlib.metadata import entry_points

    for group in ("msgbus.adapters", "msgbus.stores"):
        for entry in entry_points(group=group):
            module, _, attribute = entry.value.partition(":")
            try:
                assert hasattr(importlib.import_module(module), attribute)
            except ModuleNotFoundError as exc:
                if (exc.name or "").partition(".")[0] in {"msgbus", module}:
                    raise
