"""One Python API for queues, pub-sub and request-reply, with the same delivery guarantees on every broker."""
