"""What is known of one delivery of a message until it is settled."""

from __future__ import annotations

from msgbus_nats._pull import Pull

__all__ = ["Receipt"]


class Receipt:
    """One delivery of a message."""

    __slots__ = ("answered", "deadline", "due", "handed", "key", "pin", "pull", "reply", "seq", "time", "until")

    def __init__(self, seq: int, reply: str, deadline: float, pull: Pull, time: str) -> None:
        self.seq = seq
        self.reply = reply
        self.deadline = deadline
        self.pull = pull
        self.pin = pull.pin
        self.time = time
        self.handed = False
        self.answered = False
        self.key: str | None = None
        self.due = 0.0
        self.until = 0.0
