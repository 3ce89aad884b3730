"""msgbus on NATS: queues and topics on JetStream, requests on core NATS, over nats-py.

URL
    ``nats://user:password@one:4222,two`` names servers of a cluster; the others are learned from whichever answers.
    ``nats://token@host`` logs in with a token, ``tls://`` encrypts. The port is 4222 unless said. Extra:
    ``msgbus[nats]``.

Options
    Those of `msgbus_nats._options.NatsOptions`, after the question mark.

Native options of a channel
    ``stream``, ``subject``, ``consumer`` (a stream, subject and durable consumer with names of their own),
    ``declare`` (False: they exist, and are left as they are), ``partitions`` (of a keyed queue), ``durable`` (False
    puts a topic on core NATS, True puts requests on JetStream).

Semantics
    - A queue is a work-queue stream with one durable pull consumer; all topics share a stream, in which each group has
      its consumer. `msgbus_nats._names` tells what everything is called.
    - Published is what JetStream has stored. Confirmations are pipelined, and each message carries its id as
      ``Nats-Msg-Id``: published again after a lost connection, it is stored once.
    - A lease is the consumer's ``ack_wait``. The server would take an acknowledgement from whoever held a message
      before; this adapter does not send it any more once the lease has ended.
    - Failed messages wait at the server, and so do messages published with a delay (from nats-server 2.12 on).
    - On a keyed channel each partition is pinned to one consumer, which hands out a key's messages in order (from
      nats-server 2.11 on).
    - Deliveries are the server's count, which includes what was given back untried.
    - Requests and answers are on core NATS: nobody listening is an error at once, and an answer whose caller has gone
      is lost. Confirmed is what the server has read and not sent back.
    - A lost connection is replaced for ever, and pulls are begun anew. A server in lame-duck mode is left if there is
      another one.

Limits
    - nats-server 2.10 or later; without the versions above, order per key and delayed publishing are refused.
    - Bodies up to the server's ``max_payload`` less 32 KiB. Names of streams and consumers up to 255 characters.
    - Core NATS cannot be told to wait: beyond 65,536 waiting messages the newest are dropped, and an error is logged.
    - Where streams are joined: no delayed messages, and no replay of dead letters to one group of a topic.

Escape hatch
    ``adapter.raw`` is the `nats.aio.client.Client` in use, ``Delivery.raw`` the `nats.aio.msg.Msg`.
"""

from __future__ import annotations

from msgbus_nats._adapter import NatsAdapter

__all__ = ["NatsAdapter"]
