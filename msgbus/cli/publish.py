"""``msgbus send``, ``publish`` and ``request``."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from msgbus._bus import Bus
from msgbus._channel import Channel, Queue, RequestReply, Topic
from msgbus._codec import Codec
from msgbus._message import new_id
from msgbus.adapter import Kind, Provision
from msgbus.cli import _options as options
from msgbus.cli._bodies import BYTES, JSON_TEXT, TEXT, lines_of, opened_body, read_body
from msgbus.cli._broker import agree, change, execute, no_key, opened
from msgbus.cli._errors import Failed, Misuse
from msgbus.cli._output import body_value, console, print_json, print_value, progress, say
from msgbus.cli._target import load_app
from msgbus.errors import DecodeError, EncodeError, PublishFailed, TopologyError

app = typer.Typer()

_SHOWN = 3
"""How many failed lines of --many are told: the first ones tell what is wrong with the others."""

Name = Annotated[str, typer.Argument(metavar="CHANNEL", help="Its name.", show_default=False)]
Body = Annotated[
    str | None,
    typer.Argument(metavar="BODY", help="JSON, @FILE, or - for standard input.", show_default=False),
]
Text = Annotated[bool, typer.Option("--text", help="BODY is text, not JSON.")]
BytesFile = Annotated[
    Path | None, typer.Option("--bytes-file", metavar="FILE", help="The body is this file's bytes.", show_default=False)
]
Key = Annotated[str | None, typer.Option("--key", help="The ordering key.", show_default=False)]
Delay = Annotated[float, typer.Option("--delay", min=0, metavar="SECONDS", help="Not to be received before.")]
Expires = Annotated[
    float | None,
    typer.Option("--expires", min=0, metavar="SECONDS", help="Not to be handled after.", show_default=False),
]
Header = Annotated[
    list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="May be repeated.", show_default=False)
]
Id = Annotated[str | None, typer.Option("--id", help="The message id, instead of a random one.", show_default=False)]
Many = Annotated[bool, typer.Option("--many", help="One message per line of @FILE or -.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long to wait for the answer.")]

_SEND = """Send a message to a queue; returns once the broker has confirmed it.

Example: msgbus send orders '{"id": "1"}' --delay 30
"""
_PUBLISH = """Publish a message to every group of a topic; returns once the broker has confirmed it.

Example: msgbus publish order.placed @order.json --header tenant=acme
"""


@dataclass(frozen=True, slots=True)
class _Call:
    """What one use of ``send``, ``publish`` or ``request`` was told about channel and body."""

    kind: Kind
    name: str
    text: bool
    bytes_file: Path | None
    keyed: bool
    target: str | None
    app_dir: Path
    url: str | None

    async def resolve(self) -> tuple[Bus, Channel[Any]]:
        """Return the bus, and the channel: the application's own, else what exists, else what is made now."""
        if self.target is not None:
            application = load_app(self.target, self.app_dir)
            return change(application.bus, self.url), application.channel(self.name, self.kind)
        codec = TEXT if self.text else BYTES if self.bytes_file else JSON_TEXT
        candidates = _candidates(self.kind, self.name, codec, keyed=self.keyed)
        try:
            # Verified first: declaring a queue without a key where one with keys exists may make a second one.
            async with opened(Bus(self.url, topology=Provision.VERIFY)) as session:
                return Bus(self.url), await agree(session, candidates, None)
        except TopologyError:
            return Bus(self.url), candidates[0]

    def read(self, body: str | None) -> bytes:
        """Return the body."""
        if (body is None) == (self.bytes_file is None):
            raise Misuse("give one body: JSON, @FILE, - for standard input, or --bytes-file FILE")
        return read_body(f"@{self.bytes_file}" if body is None else body)

    def payload(self, channel: Channel[Any], body: bytes) -> Any:
        """Return the payload for *channel*: the body itself, or what the application makes of it.

        Raises:
            EncodeError: The body does not fit the application's channel.
        """
        if self.target is None:
            return body
        fitting, problem = [], ""
        for decode in channel.decoders.values():
            try:
                fitting.append(decode(body))
            except DecodeError as exc:
                problem = problem or str(exc)
        if not fitting:
            raise EncodeError(f"{channel}: {problem}")
        if len(fitting) > 1:
            names = ", ".join(type(payload).__name__ for payload in fitting)
            raise EncodeError(f"{channel}: the body fits {names}; it cannot be told which is meant")
        return fitting[0]


@app.command("send", help=_SEND)
@app.command("publish", help=_PUBLISH)
def publish(
    context: typer.Context,
    name: Name,
    body: Body = None,
    text: Text = False,
    bytes_file: BytesFile = None,
    many: Many = False,
    key: Key = None,
    delay: Delay = 0.0,
    expires: Expires = None,
    header: Header = None,
    id: Id = None,
    application: options.Application = None,
    app_dir: options.AppDir = Path(),
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Send to a queue or publish to a topic: the command's name says which."""
    kind = Kind.QUEUE if context.info_name == "send" else Kind.TOPIC
    call = _Call(kind, name, text, bytes_file, key is not None, application, app_dir, url)
    details: dict[str, Any] = {"delay": delay, "expires": expires, "headers": _headers(header)}
    if many:
        if id is not None or key is not None or bytes_file is not None or body is None:
            raise Misuse("--many takes one message per line of @FILE or -, and no --id, --key or --bytes-file")
        _publish_lines(call, body, details, as_json=as_json)
        return
    details |= {"id": new_id() if id is None else id, "key": key}
    execute(_publish_one(call, call.read(body), details))
    _confirmed({"channel": name, "id": details["id"]}, f"{details['id']} is on {name}", as_json=as_json)


@app.command("request")
def request(
    name: Name,
    body: Body = None,
    text: Text = False,
    bytes_file: BytesFile = None,
    timeout: Timeout = 10.0,
    header: Header = None,
    id: Id = None,
    application: options.Application = None,
    app_dir: options.AppDir = Path(),
    url: options.Url = None,
    as_json: options.AsJSON = False,
) -> None:
    """Send a request and print its answer.

    Example: msgbus request price '{"sku": "A-1"}' --timeout 3
    """
    call = _Call(Kind.REQUEST, name, text, bytes_file, False, application, app_dir, url)
    answer = execute(_request(call, call.read(body), timeout, {"id": id, "headers": _headers(header)}))
    value, encoding = body_value(answer)
    if as_json:
        print_json({"channel": name, "answer": value, "answer_encoding": encoding})
    elif console().is_terminal:
        print_value(value, encoding)
    else:
        sys.stdout.buffer.write(answer if encoding == "hex" else answer.rstrip(b"\n") + b"\n")


def _publish_lines(call: _Call, body: str, details: dict[str, Any], *, as_json: bool) -> None:
    started = time.perf_counter()
    with opened_body(body) as stream, progress(f"to {call.name}", None) as advance:
        sent, failures = execute(_publish_many(call, details, lambda: lines_of(stream, advance)))
    took = time.perf_counter() - started
    data = {"channel": call.name, "sent": sent, "failed": [{"line": k, "error": v} for k, v in failures.items()]}
    _confirmed(data, f"{sent:,} messages are on {call.name} ({took:.1f} s)", as_json=as_json)
    if failures:
        told = "; ".join(f"line {line}: {error}" for line, error in list(failures.items())[:_SHOWN])
        more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        raise Failed(f"{len(failures)} of {sent + len(failures)} messages were not sent: {told}{more}")


async def _publish_one(call: _Call, body: bytes, details: dict[str, Any]) -> None:
    bus, channel = await call.resolve()
    payload = call.payload(channel, body)
    async with opened(bus) as session:
        await session.publish(channel, payload, details)


async def _publish_many(
    call: _Call, details: dict[str, Any], read: Callable[[], AsyncIterator[bytes]]
) -> tuple[int, dict[int, str]]:
    """Publish each line; return how many were confirmed, and the other lines' numbers and errors."""
    bus, channel = await call.resolve()
    failed: dict[int, str] = {}
    numbers: list[int] = []

    async def payloads() -> AsyncIterator[Any]:
        number = 0
        async for line in read():
            number += 1
            try:
                payload = call.payload(channel, line)
            except EncodeError as exc:
                failed[number] = str(exc)
                continue
            numbers.append(number)
            yield payload

    async with opened(bus) as session:
        try:
            sent = await session.publish_many(channel, payloads(), details)
        except PublishFailed as exc:
            sent = exc.total - len(exc.failures)
            failed |= {numbers[index]: str(error) for index, error in exc.failures.items()}
    return sent, dict(sorted(failed.items()))


async def _request(call: _Call, body: bytes, timeout: float, details: dict[str, Any]) -> bytes:
    bus, channel = await call.resolve()
    assert isinstance(channel, RequestReply)
    payload = call.payload(channel, body)
    async with opened(bus) as session:
        answer = await session.request(channel, payload, timeout, details)
    return channel.encode_reply(answer)


def _candidates(kind: Kind, name: str, codec: Codec, *, keyed: bool) -> list[Channel[Any]]:
    if kind is Kind.REQUEST:
        return [RequestReply(name, bytes, bytes, codec=codec)]
    channel: Callable[..., Channel[Any]] = Queue if kind is Kind.QUEUE else Topic
    pair = [channel(name, bytes, codec=codec), channel(name, bytes, codec=codec, key=no_key)]
    if any(c.is_pattern for c in pair if isinstance(c, Topic)):
        raise Misuse(f"{name!r} is a pattern; nothing can be published to it")
    return pair[::-1] if keyed else pair


def _headers(pairs: list[str] | None) -> dict[str, str]:
    headers = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise Misuse(f"--header takes NAME=VALUE, not {pair!r}")
        headers[name] = value
    return headers


def _confirmed(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(data)
    else:
        say(text)
