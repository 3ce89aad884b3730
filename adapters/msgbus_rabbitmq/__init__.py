"""RabbitMQ, over kombu and py-amqp: ``pip install msgbus[rabbitmq]``.

**URL**: ``amqp://user:password@host:5672/vhost`` (``amqps://`` for TLS, port 5671), several hosts separated by commas
for failover: the first that answers is used. No path, or ``/``, is the vhost ``/``. Options in the query are those of
`Options`; ``native={...}`` of a channel takes those of `Native`.

**Delivery semantics**

- A publish is confirmed by the broker: for a quorum queue by a majority of its nodes, on disk. A message to a queue
  that does not exist is `Unroutable`; one to a topic nobody subscribes to is confirmed, and gone.
- Queues are quorum queues (``queue_type=classic`` for the others), one per channel or group, and each has its
  ``.dlq``. Requests and replies use classic queues and are not written to disk.
- A delayed message waits at the broker, in parking queues that all applications of the vhost share: one per power
  of two, through which it passes like a binary number. It is never early; it is late by up to 0.1 s, or 1.6 % of
  the delay if that is more, and a few milliseconds per queue (at most seven).
- Messages of a keyed channel are spread over ``partitions`` queues by ``crc32(key)``; each partition is consumed by
  one process at a time, and processes share the partitions. A nacked message is held unacked, with the later ones of
  its key, until its delay is over; its deliveries are counted in the process that holds it.
- ``Received.deliveries`` is what a quorum queue counts: also hand-overs that ended with a lost connection. What is
  given back untried is replaced by a copy, so it does not count. Classic queues do not count.
- Acks are not confirmed by AMQP: one that is lost with its connection means that the message comes again.

**Limits**: bodies up to ``max_body`` (16 MiB); names up to 255 bytes; delays up to 14 days. On keyed channels delays
should stay below the broker's ``consumer_timeout`` (30 minutes): beyond it, the broker takes the messages back and
hands them out again. In-flight and delayed messages cannot be counted over AMQP.

**Escape hatch**: `Adapter.raw` is a `kombu.Connection`; `Delivery.raw` is an `amqp.Message`.
"""

from __future__ import annotations

from msgbus_rabbitmq._adapter import RabbitMQAdapter
from msgbus_rabbitmq._options import Native, Options

__all__ = ["Native", "Options", "RabbitMQAdapter"]
