"""``msgbus run``: consume until a signal says stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msgbus import _run
from msgbus._bus import Bus
from msgbus._config import load_settings
from msgbus._consumers import limits_for
from msgbus._registry import adapter_class
from msgbus._version import __version__
from msgbus.cli import _options as options
from msgbus.cli._broker import change
from msgbus.cli._errors import FAILED, Misuse, report
from msgbus.cli._logs import configure_logs, log
from msgbus.cli._supervisor import Supervisor
from msgbus.cli._target import App, load_app

app = typer.Typer()

_THREADS_END = 1.0
"""Seconds that idle threads get to end; one that needs longer runs a handler."""


class Level(StrEnum):
    """How much is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


Target = Annotated[str, typer.Argument(metavar="MODULE:BUS", help="The bus, for example app:bus.", show_default=False)]
Workers = Annotated[int, typer.Option("--workers", min=1, metavar="N", help="How many processes.")]
Reload = Annotated[bool, typer.Option("--reload", help="Start again when a .py file under --app-dir changes.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="CHANNEL", help="Consume only this; may be repeated.", show_default=False),
]
LogLevel = Annotated[
    Level | None, typer.Option("--log-level", help="How much is logged: info unless the module set up logging itself.")
]
Supervised = Annotated[str | None, typer.Option("--supervised", hidden=True)]


@app.command("run")
def run(
    target: Target,
    workers: Workers = 1,
    reload: Reload = False,
    only: Only = None,
    app_dir: options.AppDir = Path(),
    factory: options.Factory = False,
    log_level: LogLevel = None,
    url: options.Url = None,
    supervised: Supervised = None,
) -> None:
    """Run an application's handlers until SIGTERM or Ctrl-C; a second one does not wait for them.

    Example: msgbus run app:bus --workers 2
    """
    if workers > 1 or reload:
        configure_logs(log_level)
        command = _worker_command(target, only or [], app_dir, log_level, url, factory=factory)
        supervisor = Supervisor(command, workers, watch=app_dir.absolute() if reload else None)
        raise typer.Exit(asyncio.run(supervisor.run()))
    worker = _follow(supervised) if supervised is not None else ""
    application = load_app(target, app_dir, factory=factory)
    change(application.bus, url)
    _check_only(application, only or [])
    configure_logs(log_level, worker)
    if worker in ("", "1"):
        _print_banner(application, only or [])
    _serve(application.bus, tuple(only or ()))


def _serve(bus: Bus, only: tuple[str, ...]) -> None:
    code = 0
    try:
        _run.run(bus, only=only)
    except Exception as exc:  # noqa: BLE001 - told below, and the process must end even if a handler's thread does not
        code = report(exc)
    if stuck := _stuck_threads():
        # Python would wait for them at exit, as long as they take.
        log.warning("%d handlers in threads do not end; their messages come again", len(stuck))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or FAILED)
    raise typer.Exit(code)


def _stuck_threads() -> list[threading.Thread]:
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("msgbus-handler")]
    deadline = time.monotonic() + _THREADS_END
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in threads if thread.is_alive()]


def _check_only(application: App, only: list[str]) -> None:
    names = list(dict.fromkeys(r.channel.name for r in application.bus.subscriptions))
    if not names:
        raise Misuse(f"{application.name} has no handlers: register some with @bus.on(channel)")
    if unknown := [name for name in only if name not in names]:
        raise Misuse(f"--only: {application.name} has no handler for {unknown[0]!r}; it has {', '.join(names)}")


def _print_banner(application: App, only: list[str]) -> None:
    settings, _ = load_settings(**application.bus._overrides)  # noqa: SLF001 - what the bus itself does at start
    adapter_class(settings.url)  # what is not installed is told without any further ado
    lines = [f"msgbus {__version__} runs {application.name} on {settings.url}"]
    for registration in application.bus.subscriptions:
        if only and registration.channel.name not in only:
            continue
        limits = limits_for(registration, settings)
        batch = f", batches of {limits.batch}" if limits.batch else ""
        handlers = ", ".join(plan.name for plan in registration.plans)
        lines.append(f"  {registration.label:28} {handlers}, {limits.concurrency} at once{batch}")
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


def _worker_command(
    target: str, only: list[str], app_dir: Path, log_level: Level | None, url: str | None, *, factory: bool
) -> list[str]:
    # -P: the working directory is put on the import path by --app-dir, behind nothing of the standard library.
    command = [sys.executable, "-P", "-m", "msgbus.cli", "run", target, "--app-dir", str(app_dir)]
    command += ["--factory"] if factory else []
    command += ["--log-level", log_level.value] if log_level else []
    command += ["--url", url] if url else []
    for name in only:
        command += ["--only", name]
    return command


def _follow(supervised: str) -> str:
    """End when the supervisor does, even if it was killed; return the worker's number."""
    pipe, _, number = supervised.partition(":")

    def wait() -> None:
        os.read(int(pipe), 1)  # returns when nobody holds the other end any more
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="msgbus-supervisor", daemon=True).start()
    return number
