"""A project folder with an application in it, and ways to use the command line there."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from msgbus.cli._app import app
from msgbus.testing.processes import WorkerProcess

APP = """
import asyncio, os, sys, time
from pydantic import BaseModel
from msgbus import Bus, Queue, RequestReply, Retry, Topic

class Order(BaseModel):
    id: str
    total: float = 1.0

class Placed(BaseModel):
    placed: str

class Cancelled(BaseModel):
    cancelled: str

orders = Queue("orders", Order)
ordered = Queue("ordered", Order, key="id")
placed = Topic("order.placed", Order)
events = Queue("events", Placed | Cancelled)
price = RequestReply("price", Order, Order)
unused = Queue("unused", Order)
bus = Bus()

@bus.on(orders, retry=Retry(attempts=2, base=0.01))
async def charge(order: Order) -> None:
    say("charging", order.id, os.getpid())
    if order.id == "bad":
        raise ValueError("no money")
    if order.id.startswith("slow"):
        await asyncio.sleep(float(order.total))
    say("charged", order.id, os.getpid())

@bus.on(ordered)
async def in_order(order: Order) -> None:
    say("in order", order.id)

@bus.on(placed, group="mail")
def mail(order: Order) -> None:
    say("mailing", order.id)
    time.sleep(order.total)
    say("mailed", order.id)

@bus.on(events)
async def event(e: Placed | Cancelled) -> None:
    say(type(e).__name__)

@bus.on(price)
async def quote(order: Order) -> Order:
    if order.id == "bad":
        raise KeyError("no such sku")
    return Order(id=order.id, total=42)

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # in one piece: several processes write
    sys.stdout.flush()

def make() -> Bus:
    return bus

async def make_async() -> Bus:
    return bus

empty = Bus()
not_a_bus = 7
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an application's folder, which is the working directory; its broker is a SQLite file in it."""
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSGBUS_URL", f"sqlite:///{tmp_path}/bus.db")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def cli(project: Path):
    """Return a function that runs a command in this process."""

    def run(*args: str, input: str | bytes | None = None) -> Any:
        return CliRunner().invoke(app, args, input=input)

    return run


@pytest.fixture
def start(project: Path):
    """Return a function that starts a command as a process; what is left of it ends with the test."""
    started: list[WorkerProcess] = []

    def run(*args: str, **env: str) -> WorkerProcess:
        process = WorkerProcess([sys.executable, "-m", "msgbus.cli", *args], cwd=project, env=env)
        started.append(process)
        return process

    yield run
    for process in started:
        process.close()


_ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "msgbus.cli", *sys.argv[1:]])
"""


class Terminal:
    """A command on a pseudo-terminal, where Ctrl-C is Ctrl-C."""

    def __init__(self, args: tuple[str, ...], cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        command = [sys.executable, "-c", _ON_TERMINAL, *args]
        self._process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self._said = b""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._ours, 4096)
            except OSError:  # the other end is closed
                chunk = b""
            with self._changed:
                self._said += chunk
                self._changed.notify_all()
            if not chunk:
                return

    def expect(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text.encode() in self._said, 20), self._said.decode()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> tuple[int, str]:
        """Return the exit code and all that was printed."""
        code = self._process.wait(20)
        self._reader.join(20)
        os.close(self._ours)
        return code, self._said.decode()


@pytest.fixture
def terminal(project: Path):
    """Return a function that runs a command on a terminal."""
    return lambda *args: Terminal(args, project)
