"""Databases of the tests' own: a SQLite file, or a new database on the session's PostgreSQL server."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scripts.brokers import Broker
from tests.stores.databases import EFFECTS, ON_POSTGRES, ON_SQLITE, Database


@pytest.fixture
def postgres(brokers: Callable[[str], Broker]) -> str:
    """Return the URL of an empty database."""
    server = brokers("postgres").url
    name = f"test_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
    return server.rpartition("/")[0] + f"/{name}"


@pytest.fixture(params=[*ON_SQLITE, *ON_POSTGRES])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return each library's database, with an empty table for effects."""
    if request.param in ON_SQLITE:
        made: Database = ON_SQLITE[request.param](tmp_path / "app.db")
    else:
        made = ON_POSTGRES[request.param](request.getfixturevalue("postgres"))
    made.rows(EFFECTS)
    return made
