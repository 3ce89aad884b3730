"""Bodies as they are given on the command line: an argument, a file, or standard input."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from msgbus._codec import Codec, Decode, Encode
from msgbus.cli._errors import Misuse
from msgbus.errors import EncodeError

__all__ = ["BYTES", "JSON_TEXT", "TEXT", "Verbatim", "lines_of", "opened_body", "read_body"]

_CHUNK = 65_536


class Verbatim:
    """A codec whose payloads are bodies already: checked, and sent byte for byte as they were written.

    Args:
        content_type: The media type written to each message.
        check: Raises ValueError for a body that is not of that type.
    """

    def __init__(self, content_type: str, check: Callable[[bytes], object]) -> None:
        self.content_type = content_type
        self._check = check

    def encoder(self, payload_type: Any) -> Encode:
        """Return a function that checks a body."""

        def encode(body: bytes) -> bytes:
            try:
                self._check(body)
            except ValueError as exc:
                raise EncodeError(f"the body is not {self.content_type}: {exc}") from exc
            return body

        return encode

    def decoder(self, payload_type: Any) -> Decode:
        """Return a function that leaves the body as it is."""
        return bytes


def _check_json(body: bytes) -> None:
    json.loads(body, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


JSON_TEXT: Codec = Verbatim("application/json", _check_json)
TEXT: Codec = Verbatim("text/plain; charset=utf-8", bytes.decode)
BYTES: Codec = Verbatim("application/octet-stream", bytes)


def read_body(text: str) -> bytes:
    """Return the body that *text* stands for: itself, a file's content (``@file``) or standard input's (``-``).

    Raises:
        Misuse: The file cannot be read.
    """
    if text != "-" and not text.startswith("@"):
        return os.fsencode(text)
    with opened_body(text) as stream:
        return stream.read()


@contextmanager
def opened_body(text: str) -> Iterator[BinaryIO]:
    """Open ``@file`` or ``-``.

    Raises:
        Misuse: It is neither, or cannot be read.
    """
    if text == "-":
        yield sys.stdin.buffer
        return
    if not text.startswith("@"):
        raise Misuse(f"--many reads lines from @FILE or - (standard input), not from {text!r:.40}")
    try:
        stream = Path(text[1:]).open("rb")  # noqa: SIM115 - its errors are told, those of who reads it are not
    except OSError as exc:
        raise Misuse(f"cannot read {text[1:]!r}: {exc.strerror}") from exc
    with stream:
        yield stream


async def lines_of(stream: BinaryIO, on_line: Callable[[int], None]) -> AsyncIterator[bytes]:
    """Give the lines of *stream* without their ends, as soon as they are there.

    Args:
        stream: What is read.
        on_line: Called with the number of lines given so far.
    """
    read = _reader(stream)
    count, rest = 0, b""
    while chunk := await _in_thread(read):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            count += 1
            yield line.removesuffix(b"\r")
        on_line(count)
    if rest:
        yield rest
        on_line(count + 1)


def _reader(stream: BinaryIO) -> Callable[[], bytes]:
    try:
        number = stream.fileno()
    except OSError:  # not a real file: somebody's test
        return lambda: stream.read(_CHUNK)
    return lambda: os.read(number, _CHUNK)


async def _in_thread(read: Callable[[], bytes]) -> bytes:
    """Read without blocking the event loop, in a thread that does not keep the program from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def tell(result: bytes | OSError) -> None:
        if future.done():
            return
        if isinstance(result, OSError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def work() -> None:
        try:
            result: bytes | OSError = read()
        except OSError as exc:
            result = exc
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result)

    threading.Thread(target=work, daemon=True).start()
    return await future
