"""An idempotency store on Redis (or Valkey): shared by any number of machines, two round trips for a handled message.

URL
    ``redis://user:password@host:6379/0``, with TLS ``rediss://…``; what follows the slash is the database's number.
    Needs Redis 6.2 or newer and the extra ``msgbus[redis]``.

Options
    ``prefix=msgbus``
        Begins every key, so that several applications may share a database.
    ``timeout=5``
        Seconds a call may take before the store counts as unreachable.
    ``tls_ca=``, ``tls_cert=``, ``tls_key=``
        Paths: the certificates to trust instead of the system's, and the client's own certificate and key.

Semantics
    - A record is one string with a time to live, so that leases and records end by Redis's own clock and nothing has
      to be purged.
    - Claims, extensions, completions and releases are Lua scripts over as many keys as there are concurrent calls:
      each is one round trip, and atomic. A call that is repeated because its answer got lost changes nothing.

Limits
    - What is remembered is worth as much as the server's persistence: with ``appendfsync everysec``, a power failure
      takes the last second with it; without persistence a restart takes everything. A failover to a replica may lose
      the last writes (replication is asynchronous). What is forgotten may be handled twice.
    - ``maxmemory-policy`` must be ``noeviction`` (the default): other policies throw records away. A warning says so
      when the store is opened.
    - Not for Redis Cluster: one script touches keys of several slots.

Escape hatch
    ``store.raw`` is the `redis.asyncio.Redis` client. Keys are ``<prefix>:<length of scope>:<scope>:<key>``.
"""

from __future__ import annotations

from msgbus_redis._store import RedisStore

__all__ = ["RedisStore"]
