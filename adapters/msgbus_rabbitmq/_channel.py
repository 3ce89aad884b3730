"""One AMQP channel: methods, replies, and what the broker sends unasked.

A channel that the broker closed stays closed; its owner opens another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any

from amqp import spec
from amqp.exceptions import ConnectionError as AMQPConnectionError
from amqp.exceptions import ConnectionForced, error_for_code
from amqp.serialization import dumps, loads

if TYPE_CHECKING:
    from msgbus_rabbitmq._wire import Wire

__all__ = [
    "CLOSE_TIMEOUT",
    "DELIVER",
    "METHOD",
    "Channel",
    "Signature",
    "content_frames",
    "frame",
    "method_payload",
    "whole_content",
]

Signature = tuple[int, int]
METHOD, HEADER, BODY = 1, 2, 3
"""Frame types."""
CLOSE_TIMEOUT = 2.0
"""Seconds that the broker gets to answer a close."""
_FRAME = Struct(">BHI")
_METHOD = Struct(">HH")
_BODY_SIZE = Struct(">Q")
_CONFIRM = Struct(">QB")
_CONTENT = Struct(">BHIHHQ")  # a content header's frame, as far as the size of the body
_NEXT = Struct(">BBHI")  # a frame's end and the next one's beginning
_END = b"\xce"
DELIVER, _RETURN, _ACK, _NACK = (
    _METHOD.pack(*method) for method in (spec.Basic.Deliver, spec.Basic.Return, spec.Basic.Ack, spec.Basic.Nack)
)
_ARGUMENTS: dict[Signature, str] = {
    spec.Channel.OpenOk: "",
    spec.Channel.Flow: "b",
    spec.Channel.Close: "BsBB",
    spec.Channel.CloseOk: "",
    spec.Queue.DeclareOk: "sll",
    spec.Queue.DeleteOk: "l",
    spec.Basic.QosOk: "",
    spec.Basic.ConsumeOk: "s",
    spec.Basic.Cancel: "sb",
    spec.Basic.CancelOk: "s",
    spec.Confirm.SelectOk: "",
}


def frame(kind: int, channel: int, payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Return *payload* as one frame, in parts: they are joined with all that leaves in one write."""
    return _FRAME.pack(kind, channel, len(payload)), payload, b"\xce"


def method_payload(method: Signature, form: str = "", *arguments: Any) -> bytes:
    """Return a method frame's payload; *form* is py-amqp's notation of the arguments' types."""
    encoded: bytes = dumps(form, arguments) if form else b""
    return _METHOD.pack(*method) + encoded


def content_frames(channel: int, method: bytes, header: bytes, body: bytes, chunk: int) -> Sequence[bytes]:
    """Return the frames of a method with content, in parts; no frame holds more than *chunk* bytes of the body."""
    size = len(body)
    if 0 < size <= chunk:  # as nearly always
        start = _FRAME.pack(METHOD, channel, len(method))
        middle = _NEXT.pack(0xCE, HEADER, channel, len(header))
        return start, method, middle, header, _NEXT.pack(0xCE, BODY, channel, size), body, _END
    frames = [*frame(METHOD, channel, method), *frame(HEADER, channel, header)]
    for offset in range(0, size, chunk):
        frames += frame(BODY, channel, body[offset : offset + chunk])
    return frames


def whole_content(data: bytes, offset: int, channel: int) -> tuple[bytes, bytes, int] | None:
    """Return the content header and the body that begin at *offset*, and where they end.

    Returns:
        None if not all is there, on *channel* and in one frame each: then `Channel.on_frame` takes frame by frame.
    """
    end = len(data)
    if end - offset < _CONTENT.size:
        return None
    kind, number, size, _, _, length = _CONTENT.unpack_from(data, offset)
    stop = offset + 7 + size
    last = stop + 8 + length
    if (kind, number) != (HEADER, channel) or last >= end:
        return None
    if _NEXT.unpack_from(data, stop) != (0xCE, BODY, channel, length):
        return None
    return data[offset + 7 : stop], data[stop + 8 : last], last + 1


class Channel:
    """One channel. What the broker sends unasked goes to the ``on_…`` callables, which its owner sets.

    Attributes:
        number: Its number on the connection.
        closed: Done once it is closed, for whatever reason; its result says why.
        on_delivery: Called with method arguments, content header and body of each delivery.
        on_return: Called with ``(reply_code, reply_text, exchange, routing_key)``, content header and body.
        on_confirm: Called with ``(delivery_tag, multiple, accepted)``.
        on_cancel: Called with the tag of a consumer that the broker cancelled.
    """

    def __init__(self, wire: Wire, number: int) -> None:
        self.wire = wire
        self.number = number
        self.closed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.on_delivery: Callable[[bytes, bytes, bytes], None] = _ignore
        self.on_return: Callable[[list[Any], bytes, bytes], None] = _ignore
        self.on_confirm: Callable[[int, bool, bool], None] = _ignore
        self.on_cancel: Callable[[str], None] = _ignore
        self._replies: deque[asyncio.Future[list[Any]]] = deque()
        self._method = self._header = b""
        self._missing = 0
        self._chunks: list[bytes] = []

    @property
    def is_open(self) -> bool:
        """Whether the channel is open."""
        return not self.closed.done()

    async def call(self, method: Signature, form: str = "", *arguments: Any) -> list[Any]:
        """Send a method and return its reply's arguments; replies come in the order of the calls."""
        if not self.is_open:
            raise self.closed.result()
        reply: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        self.send(method, form, *arguments)
        return await reply

    def send(self, method: Signature, form: str = "", *arguments: Any) -> None:
        """Send a method without waiting. The caller knows the channel to be open."""
        self.wire.write(*frame(METHOD, self.number, method_payload(method, form, *arguments)))

    async def aclose(self) -> None:
        """Close; the broker gives back what is unacked before it answers. Idempotent."""
        if self.is_open:
            self.send(spec.Channel.Close, "BsBB", 200, "bye", 0, 0)
            await asyncio.wait([self.closed], timeout=CLOSE_TIMEOUT)
            self.lose(ConnectionForced("closed by this application"))

    def lose(self, reason: BaseException) -> None:
        """Note that the channel is closed. Idempotent."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(reason)
        self._replies.clear()

    def on_frame(self, kind: int, payload: bytes) -> None:
        """Take one frame."""
        if kind == METHOD:
            method = payload[:4]
            if method in (DELIVER, _RETURN):
                self._method = payload
            elif method in (_ACK, _NACK):
                tag, bits = _CONFIRM.unpack_from(payload, 4)
                self.on_confirm(tag, bool(bits & 1), method == _ACK)
            else:
                self._on_method(_METHOD.unpack(method), payload)
        elif kind == HEADER:
            self._header = payload
            (self._missing,) = _BODY_SIZE.unpack_from(payload, 4)
            if not self._missing:
                self._on_content(b"")
        elif kind == BODY:
            self._missing -= len(payload)
            if self._missing > 0:
                self._chunks.append(payload)
            elif self._chunks:
                body = b"".join([*self._chunks, payload])
                self._chunks.clear()
                self._on_content(body)
            else:
                self._on_content(payload)

    def _on_content(self, body: bytes) -> None:
        if self._method.startswith(DELIVER):
            self.on_delivery(self._method, self._header, body)
        else:
            self.on_return(loads("Bsss", self._method, 4)[0], self._header, body)

    def _on_method(self, method: Signature, payload: bytes) -> None:
        arguments = loads(_ARGUMENTS[method], payload, 4)[0]
        if method == spec.Channel.Close:
            code, text, class_id, method_id = arguments
            self.send(spec.Channel.CloseOk)
            self.wire.forget(self)
            self.lose(error_for_code(code, text, (class_id, method_id), AMQPConnectionError))
        elif method == spec.Basic.Cancel:
            self.on_cancel(arguments[0])
        elif method == spec.Channel.Flow:
            self.send(spec.Channel.FlowOk, "b", arguments[0])
        elif method == spec.Channel.CloseOk:
            self.wire.forget(self)
            self.lose(ConnectionForced("closed by this application"))
        elif self._replies:
            reply = self._replies.popleft()
            if not reply.done():
                reply.set_result(arguments)


def _ignore(*_: Any) -> None:
    """Take what nobody waits for."""
