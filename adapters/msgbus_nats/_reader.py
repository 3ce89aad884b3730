"""Reading what the server sends, as it comes in.

nats-py collects it in a buffer, wakes a task, and tries one regular expression after the other at the buffer's front.
Here whole messages are cut out of what has just arrived, and their handlers called at once. All else (what greets,
complains or belongs to nats-py's own subscriptions) is passed on to nats-py, which acts upon it as ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

__all__ = ["Handler", "Reader"]

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes a message's subject, reply subject, header block and body; must not raise."""

_M, _H, _P, _O = b"MHPO"
_MESSAGE = b"MH"
_STORED = (
    rb"MSG %b(\d{1,15}) %b (\d{1,15})\r\n"
    rb'(\{"stream":"[^"]*","seq":\d+(?:,"domain":"[^"]*")?(?:,"duplicate":true)?\})\r\n'
)
"""How JetStream says that a message is stored: with the inbox and the subscription that it says it to filled in."""


class Reader:
    """Cuts messages out of what a connection brings.

    Args:
        handlers: Who takes the messages of which subscription, by its id as text.
        arrived: Called before anything that has arrived is looked at.
        pong: Called when the server has answered a PING.
        pass_on: Hands bytes to nats-py: whole lines and whole messages only.
        is_behind: Tells whether nats-py has yet to act upon something that it was handed.
        failed: Takes what a handler raises: raised here it would break the connection.
    """

    def __init__(
        self,
        handlers: Mapping[bytes, Handler],
        *,
        arrived: Callable[[], None],
        pong: Callable[[], None],
        pass_on: Callable[[bytes], None],
        is_behind: Callable[[], bool],
        failed: Callable[[Exception], None],
    ) -> None:
        self._handlers = handlers
        self._arrived = arrived
        self._pong = pong
        self._pass_on = pass_on
        self._is_behind = is_behind
        self._failed = failed
        self._is_stored: Callable[[bytes, int], re.Match[bytes] | None] = _nothing
        self._stored: Callable[[int], None]
        self._began = False
        self._broken = False
        self._parts: list[bytes] = []
        self._missing = 0

    def listen(self, inbox: bytes, sid: bytes, stored: Callable[[int], None]) -> None:
        """Take the shortest way for what comes most often: word from JetStream that it has stored a message.

        Args:
            inbox: What the subjects begin with to which it is sent; the rest is a number.
            sid: The subscription's id. Whatever else comes goes to its handler.
            stored: Called with the number.
        """
        self._is_stored = re.compile(_STORED % (re.escape(inbox), sid)).match
        self._stored = stored

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._arrived()
        if not self._began:
            self._began = not self._is_behind()  # the first half of something else may be there
        if self._broken or not self._began:
            self._pass_on(data)
            return
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:  # a large body comes in many pieces: they are put together once
                return
            data = b"".join(self._parts)
            self._parts.clear()
        done = self._read(data)
        if done < len(data):
            self._parts.append(data[done:] if done else data)

    def _read(self, data: bytes) -> int:
        """Handle all that is complete; return where the rest begins, of which ``_missing`` bytes are still to come."""
        at, end = 0, len(data)
        while at < end:
            if data[at] == _M and (at := self._read_stored(data, at)) == end:
                break
            line = data.find(b"\r\n", at)
            if line < 0:
                self._missing = 1
                return at
            begin = stop = line + 2
            first = data[at]
            if first in _MESSAGE:
                words = data[at:line].split()
                try:
                    handler = self._handlers.get(words[2])
                    body = begin + int(words[-2]) if first == _H else begin
                    stop += int(words[-1]) + 2
                except (ValueError, IndexError):  # nobody knows where the next one begins; nats-py will say so
                    self._broken = True
                    self._pass_on(data[at:])
                    return end
                if stop > end:
                    self._missing = stop - end
                    return at
                if handler is None:
                    self._pass_on(data[at:stop])
                else:
                    reply = words[3] if len(words) > (5 if first == _H else 4) else b""
                    self._handle(handler, words[1], reply, data[begin:body], data[body : stop - 2])
            elif first == _P and data[at + 1] == _O and not self._is_behind():  # PONG; it must not overtake a complaint
                self._pong()
            else:
                self._pass_on(data[at:stop])
            at = stop
        return end

    def _read_stored(self, data: bytes, at: int) -> int:
        """Handle the confirmations that begin *at* a place; return where the rest begins."""
        match, stored = self._is_stored, self._stored
        while (found := match(data, at)) is not None:
            number, size, body = found.groups()
            if len(body) != int(size):
                break  # the message is longer: somebody has put lines of this kind into it
            try:
                stored(int(number))
            except Exception as exc:  # noqa: BLE001 - as in `_handle`, which costs a call more for each
                self._failed(exc)
            at = found.end()
        return at

    def _handle(self, handler: Handler, *arguments: bytes) -> None:
        try:
            handler(*arguments)
        except Exception as exc:  # noqa: BLE001 - raised here it would break the connection
            self._failed(exc)


def _nothing(data: bytes, at: int) -> None:
    """Find nothing: nobody listens yet."""
