"""Run one broker process and take it down, with everything it started, when whoever asked for it is gone.

Run as a script, one guard per broker process: ``python -IS _guard.py SPEC`` with a JSON object of ``command``, ``env``,
``folder`` (removed if the parent dies), ``log`` and ``user`` (or null). It prints the broker's process id, or a line
that starts with ``error:``.

Why a process of its own: the kernel's parent-death signal goes off when the *thread* that forked ends, so a broker
started from a worker thread would die early, and it reaches one process, while RabbitMQ and PostgreSQL are several.
The guard has one thread, so the signal is exact for its child; its own parent's end it sees as the end of its input.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHECK_EVERY = 0.5  # seconds; a forked copy of the parent may hold our input open, so its process id is looked at too


def main() -> int:
    """Start the broker, wait for its end or the parent's, and return the broker's exit status."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    parent = os.getppid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = _spawn(spec)
    except (OSError, LookupError) as exc:
        print(f"error: {exc}", flush=True)
        return 1
    print(child.pid, flush=True)
    orphaned = _watch(child, parent)
    if orphaned:
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    _sweep()
    if orphaned:
        shutil.rmtree(spec["folder"], ignore_errors=True)
    return 128 - status if status < 0 else status


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def _spawn(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    identity: dict[str, Any] = {}
    if spec["user"]:
        identity = {"user": spec["user"], "group": spec["user"], "extra_groups": []}
    with Path(spec["log"]).open("ab") as log:
        return subprocess.Popen(
            spec["command"],
            env=spec["env"],
            cwd=spec["folder"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # so that one signal pauses or kills it with its children, and never the guard
            # One thread, so safe. It runs after the change of user, which would clear the setting.
            preexec_fn=functools.partial(_prctl, _PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
            **identity,
        )


def _watch(child: subprocess.Popen[bytes], parent: int) -> bool:
    """Wait for the end of *child* (False) or of the parent (True)."""
    exited = os.pidfd_open(child.pid)
    try:
        while True:
            readable, _, _ = select.select([exited, sys.stdin.fileno()], [], [], _CHECK_EVERY)
            if exited in readable:
                return False
            if readable or os.getppid() != parent:
                return True
    finally:
        os.close(exited)


def _sweep() -> None:
    """Kill and reap what the broker left behind, in whatever process group: as orphans they became our children."""
    while True:
        for line in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended while we looked
                pid, _, rest = line.read_text().partition(" ")
                if int(rest.rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main())
