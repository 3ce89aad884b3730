"""What `Adapter.post` is asked, and what it says."""

from __future__ import annotations

__all__ = ["Posts"]


class Posts:
    """Posts messages and keeps what is said of them."""

    def __init__(self, adapter):
        self.adapter = adapter
        self.said = {}

    def __call__(self, outgoing):
        def done(error):
            assert outgoing.id not in self.said, "it was said before"
            self.said[outgoing.id] = error

        return self.adapter.post(outgoing, done)
