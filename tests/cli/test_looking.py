"""``msgbus tail``, ``status``, ``check``, ``version``: looking changes nothing."""

from __future__ import annotations

import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

import msgbus
from msgbus.cli import contract, version
from msgbus.testing.processes import WorkerProcess
from msgbus.testing.runner import Result
from msgbus_sqlite import SQLiteAdapter


def sources(project):
    """Return what exists at the broker."""
    with sqlite3.connect(project / "bus.db") as db:
        found = db.execute("SELECT kind, name, grp FROM msgbus_source").fetchall()
    db.close()
    return {f"{name}@{group}" if group else name for _, name, group in found}


def test_tail_of_a_queue_takes_nothing(cli):
    cli("send", "orders", '{"id": "1"}', "--id", "m1")

    for _ in range(2):
        done = cli("tail", "orders", "--limit", "1")
        assert done.stdout.splitlines()[0] == "m1 on orders"
        assert done.stdout.splitlines()[-1] == '{"id": "1"}'


def test_tail_follows_a_queue(cli, start):
    cli("send", "orders", "1", "--id", "m1")
    with start("tail", "orders", "--json") as tail:
        tail.wait_for_line("m1")
        cli("send", "orders", "2", "--id", "m2")
        tail.wait_for_line("m2")
        tail.terminate()
        assert tail.wait() == 130
    assert [json.loads(line)["id"] for line in tail.lines] == ["m1", "m2"]


@pytest.mark.parametrize("name", ["order.placed", "order.*"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tail_of_a_topic_sees_what_is_published_and_leaves_nothing_behind(cli, start, project, name, number):
    cli("publish", "order.placed", '{"id": "0"}')
    before = sources(project)
    with start("tail", name, "--json") as tail:
        while sources(project) == before:
            assert tail.returncode is None, tail.lines
        cli("publish", "order.placed", '{"id": "1"}')
        tail.wait_for_line('"1"')
        os.kill(tail.pid, number)
        assert tail.wait() == 130
    assert [json.loads(line)["body"] for line in tail.lines] == [{"id": "1"}]
    assert sources(project) == before


def test_tail_of_a_topic_ends_at_its_limit(cli, start, project):
    cli("publish", "order.placed", "0")
    before = sources(project)
    with start("tail", "order.placed", "--limit", "2") as tail:
        while sources(project) == before:
            assert tail.returncode is None, tail.lines
        cli("publish", "order.placed", "-", "--many", input="1\n2\n3\n")
        assert tail.wait() == 0
    assert sources(project) == before


def test_tail_of_what_does_not_exist_creates_nothing(cli, project):
    cli("send", "orders", "1")
    done = cli("tail", "oders")

    assert done.exit_code == 1
    assert "'oders' was not found" in done.stderr
    assert sources(project) == {"orders"}


def test_tail_of_a_queue_is_refused_where_the_broker_cannot_be_browsed(cli, monkeypatch):
    cli("send", "orders", "1")
    monkeypatch.setattr(SQLiteAdapter, "capabilities", replace(SQLiteAdapter.capabilities, browse=False))
    done = cli("tail", "orders")

    assert done.exit_code == 2
    assert done.stderr.startswith("msgbus: error: the sqlite adapter does not support browse")


def test_tail_that_is_ended_while_it_makes_its_group_removes_it(cli, project):
    code = """
import asyncio, os, signal
from msgbus_sqlite import SQLiteAdapter
from msgbus.cli import main

declare = SQLiteAdapter.declare

async def declare_and_be_ended(self, topology):
    await declare(self, topology)
    if topology.sources:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

SQLiteAdapter.declare = declare_and_be_ended
main()
"""
    (project / "tail.py").write_text(code)
    cli("publish", "order.placed", "0")
    before = sources(project)
    with WorkerProcess([sys.executable, "tail.py", "tail", "order.placed"], cwd=project) as tail:
        assert tail.wait() == 130, tail.lines
    assert sources(project) == before


def test_tail_says_that_its_group_stays_where_it_cannot_be_removed(cli, start, project):
    code = (
        "from dataclasses import replace; from msgbus_sqlite import SQLiteAdapter as A; "
        "A.capabilities = replace(A.capabilities, remove=False); from msgbus.cli import main; main()"
    )
    (project / "tail.py").write_text(code)
    cli("publish", "order.placed", "0")
    before = sources(project)
    with WorkerProcess([sys.executable, "tail.py", "tail", "order.placed"], cwd=project) as tail:
        while sources(project) == before:
            assert tail.returncode is None, tail.lines
        tail.terminate()
        tail.wait()
    (group,) = {name.partition("@")[2] for name in sources(project) - before}
    assert f"warning: the group {group!r} stays at the broker" in tail.lines[-1]


def test_a_message_does_not_take_over_the_terminal(cli, terminal):
    cli("send", "orders", "-", "--text", "--id", "m1", input="\x1b[2Jgone\x07\nsecond line")
    code, said = terminal("tail", "orders", "--limit", "1").end()

    assert code == 0
    assert "\\x1b[2Jgone\\x07\r\nsecond line" in said
    assert "\x1b[2J" not in said


@pytest.mark.parametrize(("body", "shown"), [(r'"\ud800"', "\ud800"), ('"ünï"', "ünï"), ("[NaN]", "[NaN]")])
def test_json_is_json_whatever_the_message(cli, body, shown):
    cli("send", "orders", body, "--text")
    cli("send", "orders", body)
    done = cli("tail", "orders", "--limit", "1", "--json")

    assert done.exit_code == 0
    assert json.loads(done.stdout, parse_constant=pytest.fail)["body_encoding"] == "text"
    if shown != body:
        last = cli("tail", "orders", "--limit", "2", "--json").stdout.splitlines()[-1]
        assert json.loads(last)["body"] == shown


def test_status_tells_what_waits_where(cli):
    cli("send", "orders", "-", "--many", input="1\n2\n")
    cli("send", "orders", "3", "--delay", "60")

    rows = [line.split() for line in cli("status", "orders").stdout.splitlines()]
    assert rows[0][-1] == "ok"
    assert rows[2][:5] == ["orders", "2", "0", "1", "0"]


def test_status_of_an_application_has_all_its_subscriptions_and_makes_none(cli, project):
    cli("send", "orders", "1")
    done = cli("status", "--app", "app:bus", "--json")

    data = json.loads(done.stdout)
    shown = {(s["channel"], s["group"]): (s["exists"], s["ready"]) for s in data["subscriptions"]}
    assert data["ok"] is True
    assert shown["orders", ""] == (True, 1)
    assert shown["order.placed", "mail"] == (False, None)
    assert len(shown) == 5
    assert sources(project) == {"orders"}
    assert "order.placed@mail  not there" in cli("status", "--app", "app:bus", "order.placed@mail").stdout


def test_check_names_what_is_missing_and_creates_nothing(cli, project):
    cli("send", "orders", "1")
    missing = cli("check", "--app", "app:bus", "--json")

    data = json.loads(missing.stdout)
    assert missing.exit_code == 1
    assert [s["subscription"] for s in data["subscriptions"] if s["ok"]] == ["orders"]
    assert missing.stderr.startswith("msgbus: error: 4 of 5 subscriptions cannot run: ordered, order.placed@mail")
    assert sources(project) == {"orders"}

    cli("send", "orders", '{"id": "1"}', "--app", "app:bus")  # the application declares what it consumes
    there = cli("check", "--app", "app:bus")
    assert there.exit_code == 0
    assert "order.placed@mail: ok" in there.stdout


def test_check_says_what_a_confirmation_is_worth(cli):
    assert "survives nothing" in cli("check", "--url", "memory://").stdout
    cli("send", "orders", "1")
    assert "survives a restart of the broker" in cli("check").stdout


def test_version_tells_what_is_installed(cli, monkeypatch):
    data = json.loads(cli("version", "--json").stdout)

    assert (data["msgbus"], data["python"]) == (msgbus.__version__, platform.python_version())
    assert {"memory", "sqlite"} <= {a["scheme"] for a in data["adapters"] if not a["missing"]}
    assert f"msgbus {msgbus.__version__}" in cli("version").stdout


def test_version_names_the_extra_an_adapter_lacks(cli, monkeypatch):
    class Ours:
        name = "msgbus"

    entry = EntryPoint("rabbit", "msgbus_rabbit:Adapter", "msgbus.adapters")
    vars(entry)["dist"] = Ours()
    monkeypatch.setattr(version, "entry_points", lambda group: [entry])
    monkeypatch.setattr(version, "requires", lambda _: ['no-such-client>=5; extra == "rabbit"', "pydantic>=2"])

    assert "rabbit://  needs no-such-client: pip install 'msgbus[rabbit]'" in cli("version").stdout


def test_version_starts_without_rich_and_without_any_adapter():
    """A command imports what it uses: no terminal library, no broker's client, no other command."""
    code = "import sys; from msgbus.cli import main\ntry: main()\nfinally: print('loaded', *sys.modules)"
    unmeasured = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}  # coverage loads sqlite3 itself
    done = subprocess.run(
        [sys.executable, "-c", code, "version"], capture_output=True, text=True, check=True, env=unmeasured
    )

    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert "msgbus.cli.version" in loaded
    assert not loaded & {
        "rich.console",
        "sqlite3",
        "pydantic_settings",
        "msgbus_sqlite",
        "msgbus_memory",
        "msgbus.cli.dlq",
    }


def test_contract_proves_a_section(cli):
    done = cli("contract", "memory://cli-contract", "--sections", "b")

    assert done.exit_code == 0, done.output
    assert "passed" in done.stdout.splitlines()[-1]
    assert not [line for line in done.stdout.splitlines()[1:-1] if not line.startswith("B")]


def test_contract_fails_with_the_checks_that_failed(cli, monkeypatch):
    async def run(harness, *, on_result, sections):
        assert harness.url == "memory://x"
        results = [Result("A1-good", "Good.", "passed"), Result("A2-bad", "Bad.", "failed", "1 != 2")]
        for result in results:
            on_result(result)
        return results

    monkeypatch.setattr(contract, "run_contract", run)
    done = cli("contract", "memory://x", "--json")

    assert [r["status"] for r in json.loads(done.stdout)] == ["passed", "failed"]
    assert done.exit_code == 1
    assert done.stderr == "msgbus: error: 1 of 2 checks failed: A2-bad\n"


def test_contract_knows_its_sections(cli):
    done = cli("contract", "memory://x", "--sections", "A,?")

    assert done.exit_code == 2
    assert "there is no section '?'" in done.stderr
