"""``msgbus check``: does the broker have what the application needs, and what is a confirmation worth there?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from msgbus._bus import Bus
from msgbus._consumers import check_registration
from msgbus._registration import Registration
from msgbus._session import Session
from msgbus.adapter import Adapter, Provision
from msgbus.cli import _options as options
from msgbus.cli._broker import adapters_of, execute, like, opened
from msgbus.cli._errors import Failed
from msgbus.cli._output import print_json, say
from msgbus.cli._target import load_app
from msgbus.errors import HandlerError, TopologyError, UnsupportedFeature

app = typer.Typer()


@app.command("check")
def check(
    application: options.Application = None,
    app_dir: options.AppDir = Path(),
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Connect, and verify that what the application consumes exists; nothing is created.

    Example: msgbus check --app app:bus --url amqp://staging
    """
    bus = Bus() if application is None else load_app(application, app_dir).bus
    brokers, found = execute(_check(like(bus, url, Provision.VERIFY), bus.subscriptions))
    problems = {label: problem for label, problem in found.items() if problem}
    if as_json:
        subscriptions = [{"subscription": k, "ok": not v, "problem": v} for k, v in found.items()]
        print_json({"ok": not problems, "brokers": brokers, "subscriptions": subscriptions})
    else:
        for broker in brokers:
            say(f"{broker['url']}: connected")
            say(f"  a confirmed message survives {broker['survives']}")
        for label, problem in found.items():
            say(f"{label}: {problem or 'ok'}")
    if problems:
        raise Failed(f"{len(problems)} of {len(found)} subscriptions cannot run: {', '.join(problems)}")


async def _check(bus: Bus, registrations: tuple[Registration, ...]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    async with opened(bus) as session:
        found = {registration.label: await _problem(session, registration) for registration in registrations}
        return [{"url": str(a.url), "survives": _survives(a)} for a in adapters_of(session)], found


async def _problem(session: Session, registration: Registration) -> str:
    connection, source = await session.source(registration.channel, registration.group or None)
    try:
        check_registration(registration, connection, session.settings)
        await connection.declare(sources=[source])
    except (HandlerError, TopologyError, UnsupportedFeature) as exc:
        return str(exc)
    return ""


def _survives(adapter: Adapter) -> str:
    """Say what the adapter declares; how the broker's disks and replicas are set up is told by its own page."""
    return "a restart of the broker" if adapter.capabilities.durable else "nothing: it is in the broker's memory only"
