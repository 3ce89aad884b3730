"""What leaves, and when; without a broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from amqp import spec

from msgbus_rabbitmq._channel import Channel, content_frames, method_payload
from msgbus_rabbitmq._message import encode_content
from msgbus_rabbitmq._wire import Login, Wire


class _Sent(asyncio.Transport):
    """Notes each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def abort(self) -> None: ...


def _wire() -> tuple[Wire, list[bytes]]:
    wire, sent = Wire(Login("PLAIN", b"", "/", 0, "test")), _Sent()
    wire.connection_made(sent)
    sent.writes.clear()  # the protocol's header
    return wire, sent.writes


async def test_what_is_written_in_one_turn_leaves_in_one_write():
    wire, writes = _wire()
    for number in range(100):
        wire.write(b"%d," % number, b"x")
    assert writes == []

    await asyncio.sleep(0)

    assert writes == [b"".join(b"%d,x" % number for number in range(100))]


async def test_a_large_batch_begins_to_leave_while_it_is_encoded():
    wire, writes = _wire()
    parts = [bytes([number]) * 40_000 for number in range(5)]
    for part in parts:
        wire.write(part)
    assert [len(data) for data in writes] == [80_000, 80_000]

    await asyncio.sleep(0)

    assert b"".join(writes) == b"".join(parts)


@pytest.mark.parametrize("piece", [1, 7, 50, 1000, 100_000])
async def test_deliveries_are_whole_however_they_arrive(piece):
    """In one piece or many, with bodies of no, one or several frames, and another channel's frames between."""
    wire, _ = _wire()
    channel, other = (wire._channels.setdefault(number, Channel(wire, number)) for number in (1, 2))
    got: list[tuple[int, bytes, bytes, bytes]] = []
    channel.on_delivery = lambda *parts: got.append((1, *parts))
    other.on_delivery = lambda *parts: got.append((2, *parts))
    sent: list[tuple[int, bytes, bytes, bytes]] = []
    stream = b""
    for tag, size in enumerate((5, 0, 99, 100, 101, 350, 1), 1):
        body = bytes([64 + tag]) * size
        method = method_payload(spec.Basic.Deliver, "sLbss", "consumer", tag, False, "", "queue")
        header = encode_content({"ce-id": f"{tag}"}, size, timestamp=0, persistent=True)
        frames = [b"".join(content_frames(number, method, header, body, 100)) for number in (1, 2)]
        begin = 8 + len(method)  # channel 2's message comes after channel 1's method, and before its content
        stream += frames[0][:begin] + frames[1] + frames[0][begin:]
        sent += [(2, method, header, body), (1, method, header, body)]

    for start in range(0, len(stream), piece):
        wire.data_received(stream[start : start + piece])

    assert got == sent
    assert wire.is_open


async def test_a_frame_without_its_end_ends_the_connection():
    wire, _ = _wire()
    wire._channels[1] = Channel(wire, 1)
    method = method_payload(spec.Basic.Deliver, "sLbss", "consumer", 1, False, "", "queue")
    header = encode_content({}, 1, timestamp=0, persistent=True)
    frames = bytearray(b"".join(content_frames(1, method, header, b"x", 100)))
    frames[-10] = 0  # the end of the header's frame

    wire.data_received(bytes(frames))

    assert "frame's end" in str(wire.closed.result())
    assert wire.ready.exception() is wire.closed.result()
