"""``msgbus store``: tables made, and printed."""

from __future__ import annotations

import json
import sqlite3

import pytest

from msgbus.store import AdapterConfig, BusURL, Provision
from msgbus_sqlite import SQLiteStore


def tables(path):
    with sqlite3.connect(path) as db:
        found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    db.close()
    return found


def test_create_makes_the_tables(cli, project):
    done = cli("store", "create", "sqlite:///own.db")
    assert (done.exit_code, done.stdout) == (0, "sqlite:///own.db: ready\n")
    assert "msgbus_claim" in tables(project / "own.db")
    assert json.loads(cli("store", "create", "sqlite:///own.db", "--json").stdout)["ready"]


def test_create_takes_the_configured_store(cli, project, monkeypatch):
    assert "bus.db" in cli("store", "create").stdout
    monkeypatch.setenv("MSGBUS_IDEMPOTENCY_URL", "sqlite:///other.db")
    assert cli("store", "create").stdout == "sqlite:///other.db: ready\n"
    monkeypatch.delenv("MSGBUS_IDEMPOTENCY_URL")
    monkeypatch.setenv("MSGBUS_URL", "nats://localhost")
    done = cli("store", "create")
    assert done.exit_code == 2
    assert "say which store" in done.stderr


def test_the_printed_schema_is_what_the_store_takes(cli, project):
    sql = cli("store", "schema", "sqlite").stdout
    db = sqlite3.connect(project / "app.db")
    for _ in range(2):
        db.executescript(sql)
    db.close()

    async def use():
        store = SQLiteStore(BusURL.parse("sqlite:///app.db"), AdapterConfig(provision=Provision.VERIFY))
        await store.open()
        await store.aclose()

    import asyncio

    asyncio.run(use())


@pytest.mark.parametrize("database", ["postgresql", "postgres://somewhere/shop"])
def test_the_schema_of_postgresql_needs_no_server(cli, database):
    assert cli("store", "schema", database).stdout.startswith("CREATE TABLE IF NOT EXISTS msgbus_claim (")


@pytest.mark.parametrize(("database", "says"), [("redis", "has no tables"), ("mysql", "no idempotency store")])
def test_what_has_no_tables_is_told(cli, database, says):
    done = cli("store", "schema", database)
    assert done.exit_code == 2
    assert says in done.stderr


def test_without_a_command_the_help_is_shown(cli):
    assert "schema" in cli("store").stdout
