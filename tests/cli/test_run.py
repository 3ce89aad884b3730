"""``msgbus run``: consumes, drains when told to stop, keeps workers running, notices changed files."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from msgbus.cli._watch import Watch
from msgbus.testing.processes import WorkerProcess


def status(cli, channel):
    done = cli("status", channel)
    return done.stdout.splitlines()[-1].split()


def pids(worker):
    """Return the processes of the workers, by number."""
    return {m[1]: int(m[2]) for line in worker.lines if (m := re.match(r"worker (\d) is (\d+)", line))}


@pytest.fixture
def numbered(project):
    """Make each worker of the application tell its process id when it is imported."""
    with (project / "app.py").open("a") as file:
        file.write("\nimport sys\nnumber = sys.argv[sys.argv.index('--supervised') + 1].partition(':')[2]")
        file.write("\nsay('worker', number, 'is', os.getpid())\n")


def test_it_says_what_it_runs_and_handles_messages(cli, start):
    with start("run", "app:bus", MSGBUS_URL="sqlite:///bus.db?busy_timeout=7", MSGBUS_CONCURRENCY="3") as worker:
        worker.wait_for_line("INFO msgbus: consuming orders, ordered, order.placed@mail, events, price")
        cli("send", "orders", '{"id": "1"}')
        worker.wait_for_line("charged 1")

    assert worker.lines[0].startswith("msgbus 0.")
    assert worker.lines[0].endswith("runs app:bus on sqlite:///bus.db?busy_timeout=7")
    assert worker.lines[1].split() == ["orders", "charge,", "3", "at", "once"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_running_handler(cli, start, number):
    cli("send", "orders", '{"id": "slow1", "total": 1.0}')
    with start("run", "app:bus") as worker:
        worker.wait_for_line("charging slow1")
        os.kill(worker.pid, number)
        assert worker.wait() == 0

    assert "charged slow1" in worker.lines[-1]
    assert status(cli, "orders")[1:5] == ["0", "0", "0", "0"]


def test_a_second_signal_does_not_wait_and_the_message_comes_again(cli, start):
    cli("send", "orders", '{"id": "slow1", "total": 60}')
    with start("run", "app:bus") as worker:
        worker.wait_for_line("charging slow1")
        os.kill(worker.pid, signal.SIGINT)
        worker.wait_for_line("once more stops at once")
        os.kill(worker.pid, signal.SIGINT)
        assert worker.wait(20) == 0

    assert not [line for line in worker.lines if "Traceback" in line or "charged" in line]
    assert status(cli, "orders")[1] == "1"


def test_a_second_signal_does_not_wait_for_a_handler_in_a_thread(cli, start):
    with start("run", "app:bus") as worker:
        worker.wait_for_line("consuming")
        cli("publish", "order.placed", '{"id": "m", "total": 60}')
        worker.wait_for_line("mailing m")
        worker.terminate()
        worker.wait_for_line("once more stops at once")
        worker.terminate()
        assert worker.wait(20) == 1

    assert "handlers in threads do not end; their messages come again" in worker.lines[-1]
    assert status(cli, "order.placed@mail")[1] == "1"


def test_ctrl_c_on_a_terminal_reaches_the_workers_once(cli, terminal):
    cli("send", "orders", '{"id": "slow1", "total": 1.0}')
    shown = terminal("run", "app:bus", "--workers", "2")
    shown.expect("charging slow1")
    shown.type("\x03")
    code, said = shown.end()

    assert code == 0
    assert "charged slow1" in said
    assert "Traceback" not in said


def test_only_consumes_what_is_named(cli, start):
    with start("run", "app:bus", "--only", "orders", "--only", "price") as worker:
        worker.wait_for_line("consuming orders, price$")

    assert not [line for line in worker.lines if "in_order" in line]


def test_factories_application_folders_and_log_levels(project, cli, start):
    (project / "sub").mkdir()
    (project / "app.py").rename(project / "sub" / "other.py")
    with start("run", "other:make", "--factory", "--app-dir", "sub", "--log-level", "debug") as worker:
        worker.wait_for_line("consuming")
        assert cli("send", "orders", '{"id": "bad"}').exit_code == 0
        worker.wait_for_line("DEBUG msgbus: attempt 1 on queue 'orders' failed")


def test_an_application_s_own_logging_is_left_alone(project, start):
    with (project / "app.py").open("a") as file:
        file.write("\nimport logging\nlogging.basicConfig(format='MINE %(message)s', level='INFO')\n")
    with start("run", "app:bus") as worker:
        worker.wait_for_line("^MINE consuming")


def test_workers_share_the_work_and_drain(cli, start, numbered):
    with start("run", "app:bus", "--workers", "2") as supervisor:
        for number in "12":
            supervisor.wait_for_line(rf"\[{number}\] INFO msgbus: consuming")
        cli("send", "orders", "-", "--many", input="".join(f'{{"id": "slow{n}", "total": 1.5}}\n' for n in range(100)))
        for pid in pids(supervisor).values():
            supervisor.wait_for_line(f"charging slow.* {pid}")
        supervisor.terminate()
        assert supervisor.wait() == 0

    lines = supervisor.lines
    assert len(pids(supervisor)) == 2
    assert sum("charged" in line for line in lines) == sum("charging" in line for line in lines) > 0
    assert len([line for line in lines if "runs app:bus" in line]) == 1


def test_a_worker_that_dies_is_started_again(start, numbered):
    with start("run", "app:bus", "--workers", "2") as supervisor:
        supervisor.wait_for_line(r"\[1\] INFO msgbus: consuming")
        supervisor.wait_for_line(r"\[2\] INFO msgbus: consuming")
        first = pids(supervisor)
        seen = len(supervisor.lines)
        os.kill(first["2"], signal.SIGKILL)
        supervisor.wait_for_line("worker 2 was killed by SIGKILL; starting it again in 0.25 s", after=seen)
        supervisor.wait_for_line(r"\[2\] INFO msgbus: consuming", after=seen)
        second = pids(supervisor)
        supervisor.terminate()
        assert supervisor.wait() == 0

    assert second["1"] == first["1"]
    assert second["2"] != first["2"]


def test_a_second_signal_reaches_the_workers(cli, start):
    cli("send", "orders", '{"id": "slow1", "total": 60}')
    with start("run", "app:bus", "--workers", "2") as supervisor:
        supervisor.wait_for_line("charging slow1")
        os.kill(supervisor.pid, signal.SIGINT)
        supervisor.wait_for_line("SIGTERM: finishing what runs")
        os.kill(supervisor.pid, signal.SIGINT)
        assert supervisor.wait(20) == 0

    assert status(cli, "orders")[1] == "1"


def test_a_third_signal_kills(project, start):
    (project / "deaf.py").write_text(
        "import signal, time\nfor n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(600)\n"
    )
    with start("run", "deaf:bus", "--workers", "2") as supervisor:
        supervisor.wait_for_line("deaf")
        for answer in ("stopping", "not waiting", "killing"):
            supervisor.terminate()
            supervisor.wait_for_line(f"SIGTERM: {answer}")
        assert supervisor.wait(20) == 1


def test_workers_end_with_their_supervisor_even_if_it_is_killed(start, numbered):
    with start("run", "app:bus", "--workers", "2") as supervisor:
        supervisor.wait_for_line(r"\[1\] INFO msgbus: consuming")
        supervisor.wait_for_line(r"\[2\] INFO msgbus: consuming")
        os.kill(supervisor.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in pids(supervisor).values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_worker_that_keeps_crashing_at_its_start_is_given_up(project, start):
    (project / "crash.py").write_text("import os\nprint('crashing', flush=True)\nos._exit(3)\n")
    with start("run", "crash:bus", "--workers", "2") as supervisor:
        assert supervisor.wait(60) == 1

    last = [line for line in supervisor.lines if "giving up" in line]
    assert len(last) == 1
    assert "ended with exit code 3 for the 5th time in a row at its start" in last[0]
    assert 5 <= sum(line == "crashing" for line in supervisor.lines) <= 10


def test_what_cannot_be_imported_is_not_tried_again(start):
    with start("run", "nothing:bus", "--workers", "2") as supervisor:
        assert supervisor.wait() == 2

    errors = [line for line in supervisor.lines if "error" in line]
    assert errors
    assert all("there is no module 'nothing'" in line for line in errors)


def test_reload_starts_again_with_the_new_code(cli, project, start):
    source = (project / "app.py").read_text()
    with start("run", "app:bus", "--reload") as supervisor:
        supervisor.wait_for_line("consuming")
        seen = len(supervisor.lines)
        (project / "app.py").write_text(source.replace('"charged"', '"billed"'))
        supervisor.wait_for_line("app.py changed: starting again")
        supervisor.wait_for_line("consuming", after=seen)
        cli("send", "orders", '{"id": "1"}')
        supervisor.wait_for_line("billed 1")

        seen = len(supervisor.lines)
        (project / "app.py").write_text(source + "\noops(")
        supervisor.wait_for_line(r"error: importing 'app' failed at app.py:\d+: SyntaxError", after=seen)
        supervisor.wait_for_line("waiting for a change", after=seen)
        (project / "app.py").write_text(source)
        supervisor.wait_for_line("consuming", after=seen)
        supervisor.terminate()
        assert supervisor.wait() == 0


def test_watching_sees_python_files_made_changed_and_deleted_and_no_others(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text("1")
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    watch = Watch(tmp_path)
    assert watch.changed() is None

    (tmp_path / "pkg" / "b.py").touch()
    assert watch.changed() == "pkg/b.py"
    os.utime(tmp_path / "pkg" / "a.py", (1, 1))
    assert watch.changed() == "pkg/a.py"
    (tmp_path / "pkg" / "b.py").unlink()
    assert watch.changed() == "pkg/b.py"

    (tmp_path / "notes.txt").touch()
    for folder in (".git", "__pycache__", "env"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "x.py").touch()
    assert watch.changed() is None


def test_the_import_path_has_no_surprises_for_workers(project, start):
    """A file named like a module of the standard library does not break the start of a worker."""
    (project / "typing.py").write_text("raise SystemExit('shadowed')\n")
    command = [str(Path(sys.executable).with_name("msgbus")), "run", "app:bus", "--workers", "2"]
    with WorkerProcess(command, cwd=project) as supervisor:
        supervisor.wait_for_line(r"\[2\] INFO msgbus: consuming")
