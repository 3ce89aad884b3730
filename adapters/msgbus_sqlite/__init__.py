"""msgbus on SQLite: durable queues and topics in one file, shared by the processes of one machine, without a server.

URL
    ``sqlite:///msgbus.db`` is a file in the working directory, ``sqlite:////var/lib/app/msgbus.db`` an absolute path
    (what follows the third slash is the path). The file is created if it is missing (not with ``verify``), its
    directory is not. The idempotency store takes the same URLs and may use the bus's own file, or your application's:
    all tables are called ``msgbus_…``.

Options
    ``synchronous=NORMAL|FULL``
        What a confirmed message survives. Either way it survives the death of any process, kill -9 included. With
        ``NORMAL`` (the default) a power failure or a crash of the operating system may take the last transactions with
        it, those since the last checkpoint (every 4 MB of writes); the file itself stays sound. With ``FULL`` nothing
        confirmed is lost, for one disk flush per transaction: under load a transaction carries all concurrent calls,
        so that throughput in batches drops little and the latency of a single call grows by the disk's flush.
        What may come back after a power failure is the settling, too: such messages are delivered again.
    ``busy_timeout=10``
        Seconds to wait for other processes' transactions before a call fails with `BrokerUnavailable`.

Semantics
    - A queue hands out its messages oldest first; what is given back comes before what has not been handed out.
    - On a keyed channel the messages of one key are handed out in order and to one consumer at a time, over all
      processes: a consumer gets no more of a key, and nobody else any of it, until it has settled all it holds of it.
      A nack with a delay makes its key wait; a message published with a delay does not, it joins its key when due.
    - A topic's message is copied to every group that is declared when it is published, patterns (``order.*``)
      included. A topic without a group drops its messages.
    - A received message is leased. The lease of a process that died ends by itself (`SubscribeOptions.lease`); on a
      keyed channel all held messages of a key share one lease, which ends when the last one's does.
    - Dead letters move in the transaction that settles them. A parked one holds back its key until it is replayed,
      and then takes its old place before all that waited, or until it is dropped.
    - `Received.deliveries` is exact: what is given back untried, or by closing, does not count.

Waiting
    A consumer hears of a message published through the same adapter at once, and of one from another process or
    another adapter within 20 ms (within 1 ms while messages keep coming): each process looks for commits, 50 times a
    second when idle, which costs less than one per cent of a core. Delayed messages are handed out when they are due.

Limits
    - Not for network file systems (NFS, SMB): processes of one machine share memory beside the file. Do not delete or
      replace the file, or its ``-wal`` and ``-shm`` companions, while a process has it open.
    - One process writes at a time. A batch is one transaction and so are concurrent calls, hence batches are fast
      (tens of thousands of messages a second) and many processes with single messages are not.
    - Bodies of up to 64 MiB. The file grows with the backlog and keeps its size afterwards; the room is used again
      (``VACUUM`` gives it back).
    - No replay from a position: messages are gone once they are acked.

Escape hatch
    ``adapter.raw`` is the file's path. Open a connection of your own to look inside: bodies and headers are in
    ``msgbus_message`` (headers as lines, all names in the first, then a value each; or as JSON where lines would not
    do), their state in ``msgbus_entry``, ``msgbus_keyed`` and ``msgbus_lane``. Keep transactions short: they hold up
    the bus.
"""

from __future__ import annotations

from msgbus_sqlite._adapter import SQLiteAdapter
from msgbus_sqlite._store import SQLiteStore

__all__ = ["SQLiteAdapter", "SQLiteStore"]
