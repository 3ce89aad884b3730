"""An idempotency store on PostgreSQL: shared by any number of machines, two statements for a handled message.

URL
    ``postgresql://user:password@host:5432/database``; ``postgres://`` is the same. Several hosts are tried in turn
    (``host1,host2``, with ``target_session_attrs=read-write`` for the primary). Needs PostgreSQL 11 or newer and the
    extra ``msgbus[postgres]``.

Options
    ``timeout=5``
        Seconds a call may take before the store counts as unreachable.
    ``pool_size=4``
        The most connections a process opens.
    ``prepare=true``
        Prepare statements at the server; false for poolers that cannot (PgBouncer before 1.21 in transaction mode).
    ``sslmode=``, ``sslrootcert=``, ``sslcert=``, ``sslkey=``, ``target_session_attrs=``, ``application_name=``,
    ``options=``
        libpq's own. ``options=-csearch_path=infra`` puts the table into another schema.

Semantics
    - A record is one row of ``msgbus_claim``. Leases and times to live are measured by the server's clock.
    - A batch of claims, extensions, completions or releases is one statement in autocommit, whatever its size.
    - The table is created when the store is opened, unless the topology is ``verify`` or ``skip``; ``msgbus store
      schema postgresql`` prints it for migrations. Expired rows are deleted in the background, 1,000 at a time, and
      workers that do so at the same time skip each other's rows.
    - `Idempotency(within=)` writes the same rows inside the application's own transactions.

Escape hatch
    ``store.raw`` is the `psycopg_pool.AsyncConnectionPool`.
"""

from __future__ import annotations

from msgbus_postgres._store import PostgresStore

__all__ = ["PostgresStore"]
