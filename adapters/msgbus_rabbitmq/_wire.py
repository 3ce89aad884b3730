"""AMQP 0-9-1 on the event loop: one connection, its channels, coalesced writes, heartbeats.

py-amqp supplies the codec, the method numbers and the errors; its own connection is not used, because it blocks,
revives failed channels silently (an ack of the old channel then acks another message of the new one) and reads
three times per frame. Here one large read is parsed at once, and all that is written in one turn of the loop
leaves in one write. A channel that the broker closed stays closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, cast

from amqp import spec
from amqp.exceptions import ConnectionError as AMQPConnectionError
from amqp.exceptions import ConnectionForced, error_for_code
from amqp.serialization import loads

from msgbus_rabbitmq._channel import (
    CLOSE_TIMEOUT,
    DELIVER,
    METHOD,
    Channel,
    Signature,
    frame,
    method_payload,
    whole_content,
)

__all__ = ["Login", "Wire"]

_FRAME = Struct(">BHI")
_METHOD = Struct(">HH")
_HEARTBEAT = b"".join(frame(8, 0, b""))
_FRAME_MAX = 131_072
_CHANNEL_MAX = 2047
_COALESCED = 64 * 1024
"""Bytes that are collected before they leave: more would keep the broker waiting while a batch is being encoded."""
_WRITE_BUFFER = 4 * 1024 * 1024
"""Bytes that may wait in the transport before publishers wait. Smaller stalls a batch of large messages."""

_ARGUMENTS: dict[Signature, str] = {
    spec.Connection.Start: "ooFSS",
    spec.Connection.Secure: "S",
    spec.Connection.Tune: "BlB",
    spec.Connection.OpenOk: "s",
    spec.Connection.Close: "BsBB",
    spec.Connection.CloseOk: "",
    spec.Connection.Blocked: "s",
    spec.Connection.Unblocked: "",
}
_CAPABILITIES = {
    "publisher_confirms": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
    "basic.nack": True,
}


@dataclass(frozen=True, slots=True)
class Login:
    """How to introduce oneself.

    Attributes:
        mechanism: The SASL mechanism's name.
        response: Its response; secret.
        vhost: The virtual host.
        heartbeat: Seconds between signs of life; 0 for none.
        name: The connection's name, as shown by the management interface.
        version: Of this library.
    """

    mechanism: str
    response: bytes = field(repr=False)
    vhost: str
    heartbeat: int
    name: str
    version: str = ""


class Wire(asyncio.Protocol):
    """One connection, driven by the event loop's own transport (so TLS needs nothing special).

    Attributes:
        ready: Done once the connection is open, or failed.
        closed: Done once it is closed; its result says why.
        blocked: Why the broker takes no publishes now (memory or disk alarm), or None.
        server: What the broker said about itself.
    """

    def __init__(self, login: Login, on_blocked: Callable[[], None] = lambda: None) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[BaseException] = loop.create_future()
        self.blocked: str | None = None
        self.server: dict[str, Any] = {}
        self.frame_max = _FRAME_MAX
        self._login = login
        self._on_blocked = on_blocked
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._tail = b""
        self._out: list[bytes] = []
        self._out_size = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._paused = False
        self._channels: dict[int, Channel] = {}
        self._next_channel = 0
        self._heard = self._said = True
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return not self.closed.done()

    async def channel(self) -> Channel:
        """Open a channel."""
        number = self._free_number()
        channel = self._channels[number] = Channel(self, number)
        if not self.is_open:
            channel.lose(self.closed.result())
        await channel.call(spec.Channel.Open, "s", "")
        return channel

    async def flowing(self) -> None:
        """Return once the broker takes publishes and the transport has room, or the connection is closed."""
        while not self.is_writable:
            self._flowing.clear()
            await self._flowing.wait()

    @property
    def is_writable(self) -> bool:
        """Whether a publish need not wait."""
        return not self._paused and self.blocked is None

    def write(self, *parts: bytes) -> None:
        """Send *parts* together with what else is written in this turn of the loop, as far as it fits one write."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += parts
        self._out_size += sum(map(len, parts))
        if self._out_size >= _COALESCED:
            self._flush()

    async def aclose(self) -> None:
        """Close politely, but not for long. Idempotent."""
        if self.is_open and self.ready.done():
            self._send(spec.Connection.Close, "BsBB", 200, "bye", 0, 0)
            await asyncio.wait([self.closed], timeout=CLOSE_TIMEOUT)
        self.abort(ConnectionForced("closed by this application"))

    def abort(self, reason: BaseException) -> None:
        """Close at once. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self.closed.done():
            return
        self.closed.set_result(reason)
        if not self.ready.done():
            self.ready.set_exception(reason)
        self._paused, self.blocked = False, None
        self._flowing.set()
        for channel in list(self._channels.values()):
            channel.lose(reason)
        self._channels.clear()

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        self._transport.write(b"AMQP\x00\x00\x09\x01")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everyone."""
        self.abort(exc or ConnectionForced("the broker closed the connection"))

    def pause_writing(self) -> None:
        """Make publishers wait."""
        self._paused = True

    def resume_writing(self) -> None:
        """Let publishers go on."""
        self._paused = False
        self._flowing.set()

    def data_received(self, data: bytes) -> None:
        """Parse all complete frames."""
        self._heard = True
        if self._tail:
            data = self._tail + data
        offset, end = 0, len(data)
        unpack, channels = _FRAME.unpack_from, self._channels
        try:
            while end - offset >= 8:
                kind, number, size = unpack(data, offset)
                stop = offset + 7 + size
                if stop >= end:
                    break
                if data[stop] != 0xCE:
                    raise AMQPConnectionError(f"expected a frame's end, got octet {data[stop]}: not an AMQP 0-9-1 peer")
                payload = data[offset + 7 : stop]
                offset = stop + 1
                if number == 0:
                    self._on_connection_frame(kind, payload)
                elif channel := channels.get(number):
                    content = None
                    if kind == METHOD and payload.startswith(DELIVER):
                        content = whole_content(data, offset, number)
                    if content is None:
                        channel.on_frame(kind, payload)
                    else:
                        header, body, offset = content
                        channel.on_delivery(payload, header, body)
        except Exception as exc:  # noqa: BLE001 - a parser's failure must end the connection, not vanish in the loop
            self.abort(exc)
            return
        self._tail = data[offset:]

    # -- connection methods -------------------------------------------------------------------------------------

    def _on_connection_frame(self, kind: int, payload: bytes) -> None:
        if kind != METHOD:
            return
        method: Signature = _METHOD.unpack_from(payload)
        arguments = loads(_ARGUMENTS[method], payload, 4)[0]
        if method == spec.Connection.Start:
            self._start(arguments[2], arguments[3].split(" "))
        elif method == spec.Connection.Tune:
            self._tune(*arguments)
        elif method == spec.Connection.OpenOk:
            self.ready.set_result(None)
        elif method == spec.Connection.Close:
            code, text, class_id, method_id = arguments
            self._send(spec.Connection.CloseOk)
            self._flush()
            self.abort(error_for_code(code, text, (class_id, method_id), AMQPConnectionError))
        elif method == spec.Connection.CloseOk:
            self.abort(ConnectionForced("closed by this application"))
        elif method == spec.Connection.Blocked:
            self.blocked = arguments[0]
            self._on_blocked()
        elif method == spec.Connection.Unblocked:
            self.blocked = None
            self._flowing.set()
            self._on_blocked()

    def _start(self, server: dict[str, Any], mechanisms: list[str]) -> None:
        self.server = server
        login = self._login
        if login.mechanism not in mechanisms:
            raise AMQPConnectionError(f"the broker offers {', '.join(mechanisms)}, not {login.mechanism}")
        client = {
            "product": "msgbus",
            "version": login.version,
            "platform": "Python",
            "connection_name": login.name,
            "capabilities": _CAPABILITIES,
        }
        self._send(spec.Connection.StartOk, "FsSs", client, login.mechanism, login.response, "en_US")

    def _tune(self, channel_max: int, frame_max: int, heartbeat: int) -> None:
        self.frame_max = min(frame_max or _FRAME_MAX, _FRAME_MAX)
        wanted = self._login.heartbeat
        agreed = min(heartbeat, wanted) if heartbeat and wanted else wanted
        self._send(
            spec.Connection.TuneOk, "BlB", min(channel_max or _CHANNEL_MAX, _CHANNEL_MAX), self.frame_max, agreed
        )
        self._send(spec.Connection.Open, "ssb", self._login.vhost, "", False)
        if agreed:
            self._timer = self._loop.call_later(agreed / 2, self._beat, agreed / 2)

    def _beat(self, interval: float) -> None:
        """Say something twice per heartbeat; give the peer up when it was silent for two."""
        if not self._said:
            self.write(_HEARTBEAT)
        self._said = False
        self._silent = 0 if self._heard else self._silent + 1
        self._heard = False
        if self._silent >= 4:
            self.abort(ConnectionForced(f"no sign of life from the broker for {self._silent * interval:g} s"))
            return
        self._timer = self._loop.call_later(interval, self._beat, interval)

    # -- channels -----------------------------------------------------------------------------------------------

    def _free_number(self) -> int:
        for _ in range(_CHANNEL_MAX):
            self._next_channel = self._next_channel % _CHANNEL_MAX + 1
            if self._next_channel not in self._channels:
                return self._next_channel
        raise AMQPConnectionError(f"all {_CHANNEL_MAX} channels of the connection are in use")

    def forget(self, channel: Channel) -> None:
        """Free a closed channel's number."""
        self._channels.pop(channel.number, None)

    def _send(self, method: Signature, form: str = "", *arguments: Any) -> None:
        self.write(*frame(METHOD, 0, method_payload(method, form, *arguments)))

    def _flush(self) -> None:
        out, self._out, self._out_size = self._out, [], 0
        if out and self._transport is not None and self.is_open:
            self._said = True
            self._transport.write(b"".join(out))
