"""msgbus on Apache Kafka, through aiokafka: at least once, with concurrency inside a partition.

URL
    ``kafka://one:9092,two:9092`` names servers to ask first; port 9092 when none is said. ``kafkas://`` encrypts.
    ``kafka://user:password@host`` logs in. Extra: ``msgbus[kafka]``.

Options
    ``sasl=plain|scram-sha-256|scram-sha-512|oauthbearer``
        How to log in; ``plain`` when the URL has a user. For ``oauthbearer``, ``token=module:function`` names an
        ``async def`` that returns a token.
    ``tls=true``, ``cafile=``, ``certfile=``, ``keyfile=``, ``check_hostname=true``
        Encryption, whom to trust, and the client's own certificate (PEM files).
    ``partitions=``, ``replication=``
        Of topics that are created; the broker's defaults when unset.
    ``retry_partitions=1``
        Of a subscription's retry topics. More where so much fails that one consumer cannot handle all retries.
    ``compression=none|gzip|snappy|lz4|zstd``
        Of published batches.
    ``idempotence=true``
        The broker drops repeated writes of one producer. Off only for brokers that cannot.
    ``delivery_timeout=60``
        Seconds until an unconfirmed publish is given up as unknown.
    ``session_timeout=10``
        Seconds of silence after which the group gives a process's partitions to others.
    ``rebalance_drain=3``
        Seconds that running handlers get to finish before a rebalance takes their partitions; the group waits.
    ``max_body=983040``
        The largest body in bytes. Raise it together with the broker's ``message.max.bytes``.

Native options of a channel
    ``topic`` (another topic's name), ``group_id`` (another group's id; ``{group}`` stands for the group),
    ``partitions``, ``replication``, ``retention`` (seconds, -1 for ever), ``compact``, ``config`` (a dict of topic
    settings), and ``start`` (``"latest"``: a new group begins with the next message instead of the earliest).

Semantics
    - A queue is a topic with one group. `msgbus_kafka._names` tells what everything is called.
    - Published is confirmed by all in-sync replicas (``acks=all``). Keys go to partitions by Kafka's own hashing.
    - Each subscription is a member of its group. Messages of a partition are handled concurrently; what is committed
      is the lowest unfinished offset, every 100 ms, and the finished offsets above it are in the commit's metadata. So
      a restart, or the partition's next owner, repeats what was unfinished and nothing else.
    - A message that is to be tried later waits in a retry topic of its subscription, and its partition goes on. On a
      keyed channel it waits in the subscription's memory with its key's later messages behind it, and other keys go on.
      Either way it is not early. It is on time as long as fewer than 4096 messages (or 16 MiB) of the same partition
      wait: what lies beyond is not read until there is room.
    - Attempts are counted in headers and, for waiting keys, in the commit's metadata. Kafka counts no deliveries, so
      a message that kills its consumers is repeated without end.
    - There is no lease: a message is its consumer's as long as the consumer is in the group. Slow handlers do not
      leave it, since heartbeats do not depend on them.
    - A rebalance stops a group for a moment. A partition that comes straight back goes on with its messages in flight.
      One that goes elsewhere is drained for ``rebalance_drain`` seconds; what is settled later is `LeaseLost`, and is
      handled again by the new owner.
    - A new group begins at the earliest message there is. What it did not handle, Kafka deletes when the topic's
      retention ends, and it forgets a group that was away for ``offsets.retention.minutes`` (7 days).
    - Requests are a topic that keeps them for an hour, answers one topic per service, of which each process reads a
      partition.

Limits
    - Each partition has one consumer at a time: a slow one's backlog does not move to another
      (``competing`` is not declared). More partitions than consumers keep the shares even.
    - Ordered is what has one key. Without keys, messages take the partitions in turn.
    - A pattern's new topics are noticed within 5 seconds and read from their first message. A pattern matches channel
      names, so names that Kafka takes for one (``a.b`` and ``a_b``) are refused, and so is a queue and a topic of one
      name.
    - Delays up to a day.
    - A position is partition and offset in one number (the partition above bit 48). Beginning at one begins at that
      message in its partition, and in the others at what is not older.

Escape hatch
    ``adapter.raw`` is the `aiokafka.AIOKafkaProducer`, ``Delivery.raw`` the `aiokafka.ConsumerRecord`.
"""

from __future__ import annotations

from msgbus_kafka._adapter import KafkaAdapter

__all__ = ["KafkaAdapter"]
