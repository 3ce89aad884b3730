"""What is known of one delivery of a message until it is settled."""

from __future__ import annotations

from msgbus_nats._pull import Pull

__all__ = ["Receipt"]


class Receipt:
    """One delivery of a message.

    Attributes:
        arrived: When it was read, on the client's clock.
        answered: Whether an answer is on its way, or there.
        doubtful: Whether an answer was written that may have arrived, or not.
        forgotten: Whether the server was started anew since, and may have given it to somebody else.
        fresh: Whether a server that was killed when the connection was lost may not have written down that it is here.
        returned: Whether the core has given it back, untried, to be handed out again.
    """

    __slots__ = (
        "answered",
        "arrived",
        "deadline",
        "doubtful",
        "due",
        "forgotten",
        "fresh",
        "handed",
        "key",
        "pin",
        "pull",
        "reply",
        "returned",
        "seq",
        "time",
        "until",
    )

    def __init__(self, seq: int, reply: str, arrived: float, deadline: float, pull: Pull, time: str) -> None:
        self.seq = seq
        self.reply = reply
        self.arrived = arrived
        self.deadline = deadline
        self.pull = pull
        self.pin = pull.pin
        self.time = time
        self.handed = False
        self.answered = False
        self.doubtful = False
        self.forgotten = False
        self.fresh = False
        self.returned = False
        self.key: str | None = None
        self.due = 0.0
        self.until = 0.0

    def come_again(self, reply: str, arrived: float, deadline: float, pull: Pull) -> None:
        """Take it for the same message, which the server has given to the same client once more."""
        self.reply = reply
        self.arrived = arrived
        self.deadline = deadline
        self.pull = pull
        self.doubtful = self.forgotten = False
