"""WorkerProcess controls real processes."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from msgbus.testing.processes import WorkerProcess

PATIENCE = 10.0


def python(code):
    return WorkerProcess([sys.executable, "-c", code])


COUNTING = "import time\nn = 0\nwhile True:\n    n += 1\n    print('tick', n)\n    time.sleep(0.01)"


def state(pid):
    """The kernel's letter for what the process does: T for stopped, Z for ended and not yet reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def test_waits_for_a_line_and_keeps_all_of_them():
    with python("import sys; print('one'); print('two', file=sys.stderr); print('ready 42')") as worker:
        assert worker.wait_for_line(r"ready \d+") == "ready 42"
        assert worker.wait(PATIENCE) == 0
        assert worker.lines == ["one", "two", "ready 42"]


def test_a_line_that_does_not_come_is_an_error_with_what_was_said():
    with python("import time; print('hello', flush=True); time.sleep(60)") as worker:
        worker.wait_for_line("hello")
        with pytest.raises(TimeoutError, match=r"no line with 'bye' within 0.1 s; it printed last:\n  hello"):
            worker.wait_for_line("bye", timeout=0.1)


def test_the_end_of_the_process_ends_the_wait_for_a_line():
    with python("raise SystemExit('broken')") as worker:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="broken"):
            worker.wait_for_line("ready", timeout=60)
        assert time.monotonic() - began < PATIENCE


def test_lines_of_the_past_can_be_skipped():
    with python(COUNTING) as worker:
        worker.wait_for_line("tick")
        seen = len(worker.lines)
        assert int(worker.wait_for_line("tick", after=seen).split()[1]) > seen


def test_kill_ends_it_with_its_children():
    code = "import subprocess, sys; c = subprocess.Popen(['sleep', '60']); print('child', c.pid, flush=True); c.wait()"
    with python(code) as worker:
        child = int(worker.wait_for_line("child").split()[1])
        worker.kill()
        assert worker.returncode == -signal.SIGKILL
        deadline = time.monotonic() + PATIENCE
        while state(child) not in ("gone", "Z"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_pause_stops_it_and_resume_lets_it_go_on():
    with python(COUNTING) as worker:
        worker.wait_for_line("tick")
        worker.pause()
        assert state(worker.pid) == "T"
        seen = len(worker.lines)
        time.sleep(0.2)
        # What was in the pipe when it stopped may still be read; nothing new is written.
        assert len(worker.lines) - seen <= 1
        worker.resume()
        worker.wait_for_line("tick", after=seen + 2)


def test_terminate_leaves_the_end_to_the_process():
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('draining'), sys.exit(3)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    with python(code) as worker:
        worker.wait_for_line("ready")
        worker.terminate()
        assert worker.wait(PATIENCE) == 3
        assert "draining" in worker.lines


def test_waiting_too_long_for_the_end_is_an_error():
    with python("import time; print('here', flush=True); time.sleep(60)") as worker:
        worker.wait_for_line("here")
        with pytest.raises(TimeoutError, match=r"still running after 0\.1 s"):
            worker.wait(0.1)


def test_leaving_the_context_kills_a_paused_process():
    with python("import time; time.sleep(60)") as worker:
        worker.pause()
    assert worker.returncode == -signal.SIGKILL
    worker.close()


def test_its_environment_is_ours_and_what_is_added(tmp_path):
    code = "import os; print(os.environ['PATH'] != '', os.environ['ADDED'], os.getcwd())"
    with WorkerProcess([sys.executable, "-c", code], env={"ADDED": "yes"}, cwd=tmp_path) as worker:
        assert worker.wait_for_line("yes") == f"True yes {tmp_path}"
