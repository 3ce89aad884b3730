"""What commands print: tables and colours for people, plain columns and JSON for pipes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.json import JSON
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from msgbus._failure import Report
from msgbus._message import Message, format_time

__all__ = [
    "age",
    "body_value",
    "console",
    "message_data",
    "print_json",
    "print_message",
    "print_table",
    "print_value",
    "progress",
    "say",
]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIPED_WIDTH = 1_000_000
"""Columns of a pipe: what reads it does its own wrapping."""


def console(*, stderr: bool = False) -> Console:
    """Return a console; made when needed, so that it writes to what stdout is then."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not found.is_terminal:
        found.width = _PIPED_WIDTH
    return found


def say(text: str | Text) -> None:
    """Print a line for people on stdout."""
    console().print(text, markup=False)


def print_json(data: Any) -> None:
    """Print one line of JSON."""
    line = json.dumps(data, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # half a surrogate pair in somebody's JSON, or a terminal without Unicode
        line = json.dumps(data)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, whole: Sequence[str] = (), right: Sequence[str] = ()
) -> None:
    """Print a table: with lines on a terminal, as plain columns in a pipe.

    Args:
        headings: The columns' names.
        rows: The cells.
        whole: The columns that are never folded.
        right: The columns that are set flush right.
    """
    out = console()
    table = Table(box=Table().box if out.is_terminal else None, pad_edge=out.is_terminal, header_style="bold")
    for heading in headings:
        flush = heading in right
        table.add_column(
            heading,
            justify="right" if flush else "left",
            no_wrap=flush or heading in whole or not out.is_terminal,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_visible(_one_line(cell))) for cell in row))
    with out.capture() as captured:
        out.print(table)
    # Columns are padded to their width: a pipe wants no spaces at the ends of lines.
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def _one_line(cell: str) -> str:
    return " ".join(cell.split())


def _visible(text: str) -> str:
    """Show control characters instead of obeying them: a message must not take over the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def message_data(message: Message, channel: str) -> dict[str, Any]:
    """Return a message as JSON-able data; the keys are always the same."""
    body, encoding = body_value(message.body, message.content_type)
    return {
        "channel": channel,
        "id": message.id,
        "type": message.type,
        "source": message.source,
        "time": format_time(message.time) if message.time else None,
        "key": message.key,
        "correlation_id": message.correlation_id,
        "causation_id": message.causation_id,
        "expires": format_time(message.expires) if message.expires else None,
        "content_type": message.content_type,
        "headers": dict(message.headers),
        "body": body,
        "body_encoding": encoding,
    }


def body_value(body: bytes, content_type: str = "") -> tuple[Any, str]:
    """Return a body as JSON-able data, and how to read that: ``json``, ``text`` or ``hex``."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body.hex(), "hex"
    if content_type and "json" not in content_type:
        return text, "text"
    try:
        return json.loads(text, parse_constant=_refuse_constant), "json"
    except ValueError:
        return text, "text"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def print_value(value: Any, encoding: str) -> None:
    """Print what `body_value` returned for people."""
    out = console()
    if encoding == "json":
        out.print(JSON.from_data(value, indent=2, ensure_ascii=False))
    else:
        text = _visible(value) if encoding == "text" else f"{len(value) // 2} bytes that are not text: {value:.40}…"
        out.print(Text(text))


def print_message(
    message: Message, channel: str, report: Report | None = None, position: int | str | None = None
) -> None:
    """Print a message for people: what is known about it, and its body."""
    data = message_data(message, channel) | {"position": position}
    body, encoding, headers = data.pop("body"), data.pop("body_encoding"), data.pop("headers")
    out = console()
    name = _visible(data.pop("id")) or "(no id)"
    out.print(Text(name, style="bold"), Text(f"on {data.pop('channel')}", style="dim"))
    facts = data | {f"header {name}": value for name, value in headers.items()}
    if report is not None:
        facts |= _report_facts(report)
    for name, value in facts.items():
        if value or value == 0:
            out.print(Text.assemble((f"  {name.replace('_', ' ')}: ", "cyan"), _visible(_one_line(str(value)))))
    if out.is_terminal or encoding == "hex":
        print_value(body, encoding)
    else:
        sys.stdout.write(message.body.decode().rstrip("\n") + "\n")
        sys.stdout.flush()
    if report is not None and report.traceback:
        out.print(Text(_visible(report.traceback.rstrip()), style="dim"))


def _report_facts(report: Report) -> dict[str, Any]:
    return {
        "dead because": f"{report.reason}{': ' if report.detail else ''}{report.detail}",
        "exception": report.exception,
        "attempts": report.attempts,
        "first": report.first,
        "last": report.last,
        "dead in": f"{report.source}@{report.group}" if report.group else report.source,
        "host": report.host,
    }


def age(seconds: float | None) -> str:
    """Return a length of time for people."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; gives a function that takes how many are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    out = console(stderr=True)
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
