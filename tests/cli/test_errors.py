"""Whatever goes wrong is told in one line, with exit code 2 for a wrong use and 1 for a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from msgbus.cli import publish


@dataclass
class Case:
    """A use of the command, and what is said about it."""

    args: tuple[str, ...]
    says: str
    code: int = 2


def _id(case: Case) -> str:
    return " ".join(case.args)[:60]


@pytest.mark.parametrize(
    "case",
    [
        Case(("nonsense",), "No such command 'nonsense'"),
        Case(("send",), "Missing argument 'CHANNEL'"),
        Case(("send", "orders", "1", "--dealy", "3"), "No such option: --dealy"),
        Case(("send", "orders", "1", "--delay", "soon"), "'--delay'"),
        Case(("send", "orders", "1", "--delay", "-1"), "'--delay'"),
        Case(("run", "app"), "write MODULE:BUS, for example app:bus, not 'app'"),
        Case(("run", "app:"), "write MODULE:BUS"),
        Case(("run", "app.py:bus"), "write the module's name instead of its file: app:bus"),
        Case(("run", "sub/app.py:bus"), "sub.app:bus"),
        Case(("run", "nothing:bus"), "there is no module 'nothing' in "),
        Case(("run", "app.sub:bus"), "there is no module 'app.sub' in "),
        Case(("run", "app:buss"), "module 'app' has no 'buss'; did you mean 'bus'?"),
        Case(("run", "app:zzz"), "module 'app' has no 'zzz'; it has bus, empty"),
        Case(("run", "app:not_a_bus"), "app:not_a_bus is not a Bus, but of type int"),
        Case(("run", "app:make"), "then add --factory"),
        Case(
            ("run", "app:bus", "--factory"), "--factory takes a plain function that returns a Bus; app:bus is of type"
        ),
        Case(("run", "app:make_async", "--factory"), "app:make_async is an async function"),
        Case(("run", "app:empty"), "app:empty has no handlers"),
        Case(("run", "app:bus", "--only", "oders"), "no handler for 'oders'; it has orders"),
        Case(("run", "app:bus", "--app-dir", "nowhere"), "nowhere is not a directory"),
        Case(("run", "app:bus", "--url", "rabit://x"), "no broker adapter is installed for rabit:// URLs"),
        Case(("send", "orders", "1", "--url", "sqlit:///x"), "did you mean sqlite://?"),
        Case(("send", "orders", "1", "--url", "nonsense"), "a broker URL looks like"),
        Case(("send", "orders", "1", "--url", "sqlite:///x?user=u"), "sqlite:// has no option 'user'"),
        Case(("send", "orders", "1", "--url", "sqlite:///app.py/x.db"), "app.py/x.db"),
        Case(("send", "orders", "not json"), "the body is not application/json: Expecting value"),
        Case(("send", "orders", "NaN"), "NaN is not JSON"),
        Case(("send", "orders", "@nowhere.json"), "cannot read 'nowhere.json': No such file or directory"),
        Case(("send", "orders"), "give one body"),
        Case(("send", "orders", "1", "--bytes-file", "app.py"), "give one body"),
        Case(("send", "orders", "1", "--header", "x"), "--header takes NAME=VALUE, not 'x'"),
        Case(("send", "orders", "1", "--header", "ce-id=x"), "header 'ce-id' is msgbus's own"),
        Case(("send", "orders", "1", "--id", ""), "id= takes 1 to 512 printable characters"),
        Case(("send", "no/slash", "1"), "the name of a Queue 'no/slash' is not usable"),
        Case(("publish", "order.*", "1"), "'order.*' is a pattern"),
        Case(("send", "orders", "@app.py", "--many", "--id", "x"), "--many takes one message per line"),
        Case(("send", "orders", "[1]", "--many"), "--many reads lines from @FILE or -"),
        Case(("send", "nothing", "1", "--app", "app:bus"), "app:bus has no queue 'nothing'"),
        Case(("send", "order.placed", "1", "--app", "app:bus"), "app:bus has no queue 'order.placed'"),
        Case(("status", "--app", "app:bus", "nothing"), "app:bus has no subscription 'nothing'; it has"),
        Case(("status", "nothing"), "'nothing' was not found at sqlite:///", 1),
        Case(("status", "order.*"), "say whose messages are meant, as order.*@GROUP"),
        Case(("dlq", "list", "nothing"), "'nothing' was not found at sqlite:///", 1),
        Case(("dlq", "show", "orders"), "which one?"),
        Case(("dlq", "nonsense"), "No such command 'nonsense'"),
        Case(("tail", "nothing@mail"), "'nothing@mail' was not found", 1),
        Case(("tail", "orders", "--from", "monday"), "is no place in a log: earliest, latest, a time", 2),
        Case(("tail", "orders", "--from", "earliest"), "--from is for topics", 2),
        Case(("tail", "order.*", "--from", "1"), "the sqlite adapter does not support replay"),
        Case(("contract", "nope://x", "--sections", "b"), "no broker adapter is installed for nope://"),
    ],
    ids=_id,
)
def test_one_line(cli, case):
    cli("send", "orders", "1")  # so that the broker's file exists
    done = cli(*case.args)

    assert done.stderr.startswith("msgbus: error: ")
    assert case.says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.exit_code == case.code
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\n\n1 / 0\n", "importing 'mine' failed at mine.py:3: ZeroDivisionError: division by zero"),
        ("def f(:\n", "importing 'mine' failed at mine.py:1: SyntaxError: "),
        ("import helper\n", "importing 'mine' failed at helper.py:2: KeyError: 'x'"),
        ("import not_installed\n", "importing 'mine' failed at mine.py:1: ModuleNotFoundError: No module named 'not_i"),
        ("import json\njson.loads('{')\n", "importing 'mine' failed at mine.py:2: JSONDecodeError: "),
        ("from app import *\n@bus.on(placed)\ndef f(o): ...\n", "failed at mine.py:2: HandlerError: Topic('order.pla"),
        ("from app import *\n@bus.on(orders)\ndef f(o): ...\n", "failed at mine.py:2: HandlerError: f cannot handle"),
        ("import sys\nsys.exit('no')\n", "importing 'mine' failed at mine.py:2: SystemExit: no"),
        ("class E(Exception): pass\nraise E\n", "importing 'mine' failed at mine.py:2: E"),
        ("raise ValueError('a\\nb amqp://u:secret@h')\n", "failed at mine.py:1: ValueError: a b amqp://***@h"),
    ],
)
def test_an_error_in_the_application_s_module_shows_the_place_in_its_own_file(cli, project, source, says):
    (project / "helper.py").write_text("# nothing here\n{}['x']\n")
    (project / "mine.py").write_text(source)
    done = cli("run", "mine:bus")

    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_error_in_a_factory_shows_its_place(cli, project):
    (project / "mine.py").write_text("def make():\n    return {}['x']\n")
    done = cli("run", "mine:make", "--factory")

    assert done.stderr == "msgbus: error: calling mine:make failed at mine.py:2: KeyError: 'x'\n"


@pytest.fixture
def acme(project):
    """Install an adapter for acme:// URLs; return a function that takes its source."""
    package = project / "acme_adapter-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-adapter\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[msgbus.adapters]\nacme = acme_adapter:Adapter\n")
    return (project / "acme_adapter.py").write_text


@pytest.mark.parametrize("args", [("send", "orders", "1"), ("status",), ("check",), ("dlq", "list", "orders")])
def test_a_broker_that_cannot_be_reached_is_a_failure(cli, acme, args):
    acme(
        "from msgbus_memory import MemoryAdapter\nfrom msgbus.errors import BrokerUnavailable\n"
        "class Adapter(MemoryAdapter):\n"
        "    async def open(self): raise BrokerUnavailable(f'{self.url}: connection refused')\n"
    )
    done = cli(*args, "--url", "acme://u:secret@host")

    assert done.exit_code == 1
    assert done.stderr == "msgbus: error: acme://***@host: connection refused\n"


def test_a_missing_extra_names_what_to_install(cli, acme):
    acme("import acme_client\n")
    done = cli("send", "orders", "1", "--url", "acme://host")

    assert done.exit_code == 2
    assert done.stderr == "msgbus: error: acme:// needs the package 'acme_client': pip install acme_client\n"


def test_a_wrong_environment_variable_is_named(cli, monkeypatch):
    monkeypatch.setenv("MSGBUS_CONCURENCY", "3")
    done = cli("send", "orders", "1")

    assert (done.exit_code, done.stderr) == (
        2,
        "msgbus: error: MSGBUS_CONCURENCY is not a setting of msgbus; did you mean MSGBUS_CONCURRENCY?\n",
    )


def test_a_bug_of_ours_is_one_line_too(cli, monkeypatch):
    def broken(_):
        raise LookupError("oops")

    monkeypatch.setattr(publish, "read_body", broken)
    done = cli("send", "orders", "1")

    place = f"test_errors.py:{broken.__code__.co_firstlineno + 1}"
    assert done.exit_code == 1
    assert done.stderr == f"msgbus: error: unexpected LookupError: oops ({place}); this is a bug in msgbus\n"


@pytest.mark.parametrize("args", [(), ("--help",), ("dlq", "--help")])
def test_help_is_no_error(cli, args):
    done = cli(*args)

    assert done.exit_code == 0
    assert "Usage: msgbus" in done.stdout


@pytest.mark.parametrize(
    "name", ["run", "send", "publish", "request", "tail", "status", "check", "contract", "version"]
)
def test_every_command_s_help_has_an_example_of_itself(cli, name):
    assert f"Example: msgbus {name} " in cli(name, "--help").stdout + " "


@pytest.mark.parametrize("name", ["list", "show", "replay", "drop"])
def test_every_dlq_command_s_help_has_an_example_of_itself(cli, name):
    assert f"Example: msgbus dlq {name} " in cli("dlq", name, "--help").stdout


def test_a_closed_pipe_is_no_error_worth_a_word(cli, project):
    cli("send", "orders", "-", "--many", input='{"id": "1"}\n' * 2000)
    command = f"{sys.executable} -m msgbus.cli tail orders --json | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, timeout=30, check=False)

    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_ctrl_c_leaves_no_traceback(cli, start):
    cli("send", "orders", "1")
    with start("tail", "orders") as tail:
        tail.wait_for_line("on orders")
        os.kill(tail.pid, 2)
        assert tail.wait() == 130
    assert "Traceback" not in "\n".join(tail.lines)


def test_ctrl_c_while_standard_input_is_awaited_ends_at_once(project, terminal):
    shown = terminal("send", "orders", "-", "--many")
    shown.type('{"id": "1"}\n')
    shown.expect("1/?")
    shown.type("\x03")
    code, said = shown.end()

    assert code == 130
    assert "Traceback" not in said
