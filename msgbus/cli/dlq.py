"""``msgbus dlq``: list, show, replay and drop dead letters."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer

from msgbus._bus import Bus
from msgbus._dead_letters import DeadLetterBox, DeadMessage
from msgbus.cli import _options as options
from msgbus.cli._broker import execute, find, split_label
from msgbus.cli._errors import Failed, Misuse
from msgbus.cli._output import message_data, print_json, print_message, print_table, progress, say

app = typer.Typer()
dlq = typer.Typer(invoke_without_command=True)
app.add_typer(dlq, name="dlq")

Ids = Annotated[
    list[str] | None, typer.Option("--id", metavar="ID", help="A message id; may be repeated.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="All of them.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Some = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most so many, the oldest.")]


@dlq.callback()
def look_after(context: typer.Context) -> None:
    """List, show, replay and drop dead letters."""
    if context.invoked_subcommand is None:
        context.get_help()  # Typer prints it


@dlq.command("list")
def list_(
    channel: options.Channel,
    group: options.Group = None,
    limit: Some = 100,
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """List dead letters, oldest first.

    Example: msgbus dlq list orders
    """
    letters, total = execute(_peek(channel, group, limit, url))
    if as_json:
        print_json([_data(letter) for letter in letters])
    elif not letters:
        say(f"{channel} has no dead letters")
    else:
        headings = ("id", "reason", "attempts", "last", "source", "detail")
        print_table(headings, [_row(letter) for letter in letters], whole=("id", "reason", "last"), right=("attempts",))
        if total is not None and total > len(letters):
            say(f"{len(letters):,} of {total:,}; --limit shows more")


@dlq.command()
def show(
    channel: options.Channel,
    ids: Ids = None,
    group: options.Group = None,
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Show dead letters whole: why, where, headers, body and traceback.

    Example: msgbus dlq show orders --id 5b0d6c6b58d4f3a2a1f0e9d8c7b6a594
    """
    if not ids:
        raise Misuse("which one? give --id ID, from msgbus dlq list")
    letters = execute(_show(channel, ids, group, url))
    for letter in letters:
        if as_json:
            print_json(_data(letter))
        else:
            print_message(letter.message, letter.report.source or channel, letter.report)
    if missing := sorted(set(ids) - {letter.message.id for letter in letters}):
        raise Failed(f"{channel} has no dead letter {', '.join(missing)}")


@dlq.command()
def replay(
    channel: options.Channel,
    ids: Ids = None,
    everything: All = False,
    group: options.Group = None,
    limit: options.Limit = None,
    yes: Yes = False,
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Send dead letters back to the queue or group they came from, with their attempts reset.

    Example: msgbus dlq replay order.placed@email --all
    """
    count = _take(channel, ids, group, limit, url, everything=everything, yes=yes, verb="replay")
    _tell(count, "replayed", channel, ids, as_json=as_json)


@dlq.command()
def drop(
    channel: options.Channel,
    ids: Ids = None,
    everything: All = False,
    group: options.Group = None,
    limit: options.Limit = None,
    yes: Yes = False,
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Delete dead letters for good.

    Example: msgbus dlq drop orders --id 5b0d6c6b58d4f3a2a1f0e9d8c7b6a594
    """
    count = _take(channel, ids, group, limit, url, everything=everything, yes=yes, verb="drop")
    _tell(count, "dropped", channel, ids, as_json=as_json)


@asynccontextmanager
async def _opened_box(
    label: str, group: str | None, url: str | None
) -> AsyncIterator[tuple[DeadLetterBox, int | None]]:
    """Give the box, and how many dead letters it has where the broker can tell."""
    name, group = split_label(label, group)
    channel = await find(url, name, group)
    # It exists; but reading its dead letters may take a consumer of their own, which some brokers make only then.
    bus = Bus(url)
    async with bus:
        yield await bus.dead_letters(channel, group=group), (await bus.stats(channel, group=group)).dead


async def _peek(label: str, group: str | None, limit: int, url: str | None) -> tuple[list[DeadMessage], int | None]:
    async with _opened_box(label, group, url) as (box, total):
        return await box.peek(limit=limit), total


async def _show(label: str, ids: Sequence[str], group: str | None, url: str | None) -> list[DeadMessage]:
    async with _opened_box(label, group, url) as (box, _):
        return [letter for letter in [await box.show(id) for id in ids] if letter is not None]


async def _count(label: str, group: str | None, url: str | None) -> int | None:
    async with _opened_box(label, group, url) as (_, total):
        return total


def _take(
    label: str,
    ids: Sequence[str] | None,
    group: str | None,
    limit: int | None,
    url: str | None,
    *,
    everything: bool,
    yes: bool,
    verb: str,
) -> int:
    if bool(ids) == everything:
        raise Misuse(f"which ones? give --id ID (from msgbus dlq list), or --all to {verb} all")
    if everything and not yes and sys.stdin.isatty():
        total = execute(_count(label, group, url))
        if total == 0:
            return 0
        many = "all" if total is None else f"{min(total, limit or total):,}"
        typer.confirm(f"{verb} {many} dead letters of {label}?", abort=True, err=True)
    return execute(_take_now(label, ids, group, limit, url, verb))


async def _take_now(
    label: str, ids: Sequence[str] | None, group: str | None, limit: int | None, url: str | None, verb: str
) -> int:
    async with _opened_box(label, group, url) as (box, total):
        expected = len(set(ids)) if ids else total
        with progress(f"{verb} {label}", expected if limit is None or expected is None else min(expected, limit)) as on:
            return await (box.replay if verb == "replay" else box.drop)(ids or None, limit=limit, on_progress=on)


def _tell(count: int, done: str, label: str, ids: Sequence[str] | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"channel": label, done: count})
    else:
        say(f"{done} {count:,} of {label}")
    if ids and count < len(set(ids)):
        raise Failed(f"{len(set(ids)) - count} of the {len(set(ids))} ids are not among the dead letters of {label}")


def _row(letter: DeadMessage) -> tuple[str, ...]:
    report = letter.report
    last = report.last.partition(".")[0].replace("T", " ")
    source = f"{report.source}@{report.group}" if report.group else report.source
    detail = f"{report.exception}: {report.detail}" if report.exception else report.detail
    return letter.message.id, report.reason, str(report.attempts), last, source, detail


def _data(letter: DeadMessage) -> dict[str, Any]:
    return message_data(letter.message, letter.report.source) | {"report": asdict(letter.report)}
