"""``msgbus status``: how much waits where, and whether the brokers answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from msgbus._bus import Bus
from msgbus._channel import Channel
from msgbus._session import HealthReport, Session
from msgbus.adapter import Provision, Stats
from msgbus.cli import _options as options
from msgbus.cli._broker import execute, find, like, opened, split_label
from msgbus.cli._errors import Failed, Misuse
from msgbus.cli._output import age, print_json, print_table, say
from msgbus.cli._target import App, load_app
from msgbus.errors import TopologyError

app = typer.Typer()

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="CHANNEL", help="Queues, and topics' groups as TOPIC@GROUP.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class _Line:
    """One subscription's figures; None where it does not exist at the broker."""

    channel: str
    group: str
    stats: Stats | None

    @property
    def label(self) -> str:
        return f"{self.channel}@{self.group}" if self.group else self.channel


@app.command("status")
def status(
    channels: Names = None,
    group: options.Group = None,
    application: options.Application = None,
    app_dir: options.AppDir = Path(),
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Show how many messages are ready, in flight, delayed and dead, and how old the oldest is.

    Example: msgbus status --app app:bus
    """
    if application is not None and group is not None:
        raise Misuse("with --app, write TOPIC@GROUP instead of --group")
    if application is not None:
        lines, health = execute(_of_application(load_app(application, app_dir), channels or [], url))
    else:
        lines, health = execute(_of_channels(channels or [], group, url))
    if as_json:
        print_json(_data(lines, health))
    else:
        _print(lines, health)
    if not health.ok:
        raise Failed("not every broker is reachable")


async def _of_application(application: App, labels: Sequence[str], url: str | None) -> tuple[list[_Line], HealthReport]:
    chosen = [application.registration(label) for label in labels] or application.bus.subscriptions
    async with opened(like(application.bus, url, Provision.SKIP)) as session:
        lines = [await _line(session, r.channel, r.group) for r in chosen]
        return lines, session.health()


async def _of_channels(labels: Sequence[str], group: str | None, url: str | None) -> tuple[list[_Line], HealthReport]:
    pairs = [split_label(label, group) for label in labels]
    found = [(await find(url, name, own), own or "") for name, own in pairs]
    async with opened(Bus(url, topology=Provision.VERIFY)) as session:
        lines = [await _line(session, channel, own) for channel, own in found]
        return lines, session.health()


async def _line(session: Session, channel: Channel[Any], group: str) -> _Line:
    connection, source = await session.source(channel, group or None)
    try:
        return _Line(channel.name, group, await connection.adapter.stats(source))
    except TopologyError:
        return _Line(channel.name, group, None)


def _data(lines: Sequence[_Line], health: HealthReport) -> dict[str, Any]:
    return {
        "ok": health.ok,
        "brokers": {url: asdict(state) for url, state in health.brokers.items()},
        "subscriptions": [
            {"channel": line.channel, "group": line.group, "exists": line.stats is not None}
            | asdict(line.stats or Stats())
            for line in lines
        ],
    }


def _print(lines: Sequence[_Line], health: HealthReport) -> None:
    for url, state in health.brokers.items():
        say(f"{url}: {'ok' if state.ok else state.reason}")
    if lines:
        headings = ("subscription", "ready", "in flight", "delayed", "dead", "oldest")
        print_table(headings, [_row(line) for line in lines], whole=headings[:1], right=headings[1:])


def _row(line: _Line) -> tuple[str, ...]:
    if line.stats is None:
        return line.label, "not there", "", "", "", ""
    stats = line.stats
    counts = (stats.ready, stats.in_flight, stats.delayed, stats.dead)
    return line.label, *("-" if n is None else f"{n:,}" for n in counts), age(stats.oldest_age)
