"""The brokers that other tests stand on: started for real, used with their ordinary clients, broken, repaired."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from msgbus.testing.processes import WorkerProcess
from scripts.brokers import BROKERS, BrokerError, BrokerMissing, broker_class, make, start
from scripts.brokers.fixtures import BrokerPool, require_broker
from tests.adapters.broker_clients import CLIENTS, library

PATIENCE = 30.0
FORGETFUL = {"fauxqs", "moto", "dynamodb"}
FORGETS_IF_KILLED = {*FORGETFUL, "ministack"}


@pytest.fixture(
    scope="module", params=[name for name in BROKERS if not os.environ.get(f"MSGBUS_TEST_{name.upper()}_URL")]
)
def broker(request):
    with require_broker(request.param) as broker:
        yield broker


@pytest.fixture
def client(broker):
    return CLIENTS[broker.name]()


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def descendants(pid):
    """The process and everything it started, directly or not."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def running(pids):
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def test_its_ordinary_client_gets_back_what_it_put_in(broker, client):
    client.put(broker.url, ["one", "two"])
    assert client.get(broker.url) == {"one", "two"}


def test_a_restart_keeps_data_and_url(broker, client):
    url = broker.url
    client.put(url, ["before the restart"])
    broker.restart()
    assert broker.url == url
    if broker.name not in FORGETFUL:
        assert "before the restart" in client.get(url)


def test_sigkill_and_a_start_keep_data(broker, client):
    if broker.name in FORGETS_IF_KILLED:
        pytest.skip(f"{broker.name} keeps its data in memory")
    client.put(broker.url, ["before the kill"])
    pids = descendants(broker.pid)
    broker.kill()
    assert not broker.running
    assert not running(pids)
    broker.start()
    assert "before the kill" in client.get(broker.url)


def test_a_paused_broker_answers_nothing_until_it_is_resumed(broker):
    assert broker._ready()
    broker.pause()
    asked = time.monotonic()
    answer = threading.Event()
    thread = threading.Thread(target=lambda: broker._ready() and answer.set())
    thread.start()
    assert not answer.wait(0.5)
    broker.resume()
    thread.join(PATIENCE)
    until(broker._ready, f"{broker.name} answers after {time.monotonic() - asked:.0f} s")


def test_a_proxy_stands_between_the_client_and_the_broker(broker, client):
    with broker.proxy() as proxy:
        url = broker.url_through(proxy)
        client.put(url, ["through the proxy"])
        assert "through the proxy" in client.get(url)
        assert proxy.counters.to_broker > 0
        proxy.cut()
        with pytest.raises(client.errors):
            client.put(url, ["into the void"], timeout=1)


def test_closing_leaves_no_process_and_no_folder(broker):
    pids = descendants(broker.pid)
    broker.close()
    assert not running(pids)
    assert not broker.folder.exists()


@pytest.mark.parametrize("name", ["rabbitmq", "postgres", "kafka"])
def test_nothing_is_left_if_who_started_it_is_killed(name):
    require_broker(name).close()
    code = (
        f"from scripts.brokers import start; import time\nbroker = start({name!r})\n"
        "print('started', broker.pid, broker.folder, flush=True)\ntime.sleep(600)"
    )
    with WorkerProcess([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) as worker:
        _, pid, folder = worker.wait_for_line("started", 90).split()
        pids = descendants(int(pid))
        assert running(pids)
        os.kill(worker.pid, signal.SIGKILL)  # it alone: the broker has a session of its own
        until(lambda: not running(pids), f"{name}'s processes end")
        until(lambda: not Path(folder).exists(), f"{name}'s folder goes")


def test_a_broker_outlives_the_thread_that_started_it():
    started = []
    thread = threading.Thread(target=lambda: started.append(start("redis")))
    with require_broker("redis"):
        thread.start()
        thread.join()
    with started[0] as broker:
        time.sleep(0.2)
        assert broker.running
        assert broker._ready()


def test_a_forked_copy_of_the_parent_does_not_keep_a_broker_alive():
    require_broker("redis").close()
    code = (
        "from scripts.brokers import start; import os, time\nbroker = start('redis')\n"
        "if os.fork() == 0:\n    time.sleep(600)\n"
        "print('started', broker.pid, flush=True)\ntime.sleep(600)"
    )
    with WorkerProcess([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) as worker:
        pid = int(worker.wait_for_line("started").split()[1])
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: not running({pid}), "the broker ends though a copy of its parent lives")


def test_a_broker_that_cannot_start_says_why_with_the_tail_of_its_log():
    broker = require_broker("redis")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", broker.port))
        with pytest.raises(BrokerError, match=r"(?s)^redis did not start: its process ended.*Address already in use"):
            broker.start()
    broker.close()
    assert not broker.folder.exists()


def test_a_broker_that_does_not_get_ready_in_time_is_an_error(monkeypatch):
    broker = require_broker("redis")
    monkeypatch.setattr(type(broker), "start_timeout", 0.2)
    monkeypatch.setattr(type(broker), "_ready", lambda self: False)
    with pytest.raises(BrokerError, match=r"redis did not start: waited 0\.2 s for redis to serve clients"):
        broker.start()
    assert not broker.running
    broker.close()


def test_what_is_not_installed_is_one_line_that_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MSGBUS_CACHE", str(tmp_path))
    with pytest.raises(BrokerMissing, match=r"^kafka: .*: .*(--install kafka|apt-get install.*)$"):
        make("kafka")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerMissing, match=r"^redis: redis-server not found: apt-get install redis-server$"):
        make("redis")


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_broker_skips_on_a_laptop_and_fails_in_ci(monkeypatch, tmp_path, ci, outcome):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(outcome, match="apt-get install redis-server"):
        require_broker("redis")


def test_the_environment_names_a_broker_that_runs_already(monkeypatch):
    monkeypatch.setenv("MSGBUS_TEST_NATS_URL", "nats://elsewhere:4222")
    with start("nats") as broker:
        assert (broker.url, broker.controllable, broker.running) == ("nats://elsewhere:4222", False, True)
        for control in (broker.stop, broker.restart, broker.kill, broker.pause, broker.resume, broker.proxy):
            with pytest.raises(BrokerError, match="nats at MSGBUS_TEST_NATS_URL is not ours to control"):
                control()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BrokerError, match="no broker is called 'rabbit'; there are: rabbitmq, nats, kafka"):
        start("rabbit")


def test_installing_what_is_there_does_nothing(monkeypatch):
    require_broker("redis").close()
    monkeypatch.setenv("PATH", str(Path(shutil.which("redis-server")).parent))
    broker_class("redis").install()


def test_the_shared_pool_repairs_what_a_test_did():
    with contextlib.closing(BrokerPool()) as brokers:
        broker = brokers("redis")
        assert brokers("redis") is broker
        broker.pause()
        assert brokers("redis")._ready()
        broker.kill()
        assert brokers("redis")._ready()
    assert not broker.running


def test_a_memory_alarm_blocks_rabbitmqs_publishers():
    kombu = library("kombu")
    with require_broker("rabbitmq") as broker, kombu.Connection(broker.url) as connection:
        reasons = []
        connection.connect()
        connection.connection.on_blocked = reasons.append
        broker.raise_memory_alarm()
        try:
            connection.Producer().publish("more", routing_key="nowhere")
            connection.drain_events(timeout=PATIENCE)
        finally:
            broker.clear_memory_alarm()
        assert len(reasons) == 1


def test_the_command_prints_urls_and_stops_at_ctrl_c():
    for name in ("nats", "redis"):
        require_broker(name).close()
    command = [sys.executable, "-m", "scripts.brokers", "nats,redis"]
    with WorkerProcess(command, cwd=Path(__file__).parents[2]) as worker:
        worker.wait_for_line("all running", 60)
        exports = [line for line in worker.lines if line.startswith("export ")]
        pids = descendants(worker.pid)
        assert len(pids) >= 5  # itself, two guards, two brokers
        os.kill(worker.pid, signal.SIGINT)
        assert worker.wait() == 0
    shown = subprocess.run(
        ["sh", "-c", "\n".join([*exports, "echo $MSGBUS_TEST_NATS_URL $MSGBUS_TEST_REDIS_URL"])],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [url.partition("://")[0] for url in shown] == ["nats", "redis"]
    assert not running(pids)


def test_the_command_names_what_it_does_not_know():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.brokers", "nats,carrier-pigeon"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 1
    assert "no broker is called 'carrier-pigeon'" in done.stderr
