"""The table and the statements.

Every statement is complete in itself: in autocommit one statement is one round trip, and one transaction. A batch is
given as one array per column. The rows of a batch are always touched in the order of their keys, so that two batches
cannot wait for each other.

Claiming an existing row writes it again as it is when it is not free. A duplicate costs a dead row that way, but the
statement always tells the truth: a plain read would see the row as it was when the statement began, and miss what was
committed while it waited for the row.
"""

from __future__ import annotations

from msgbus.store import Statements

__all__ = ["CLAIM", "COMPLETE", "EXTEND", "PURGE", "RELEASE", "STATEMENTS"]

_CREATE = (
    """CREATE TABLE IF NOT EXISTS msgbus_claim (
    scope text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    owner text NOT NULL,
    fingerprint text NOT NULL,
    done boolean NOT NULL,
    expires timestamptz NOT NULL,
    reply bytea,
    PRIMARY KEY (scope, key)
)""",
    "CREATE INDEX IF NOT EXISTS msgbus_claim_expires ON msgbus_claim (expires)",
)
_EXISTS = "SELECT 1 FROM msgbus_claim LIMIT 0"
_FREE = "c.expires <= now() OR (NOT c.done AND c.owner = excluded.owner AND c.fingerprint = excluded.fingerprint)"
_TAKE = f"""
ON CONFLICT (scope, key) DO UPDATE SET (owner, fingerprint, done, expires, reply) = (
    SELECT excluded.owner, excluded.fingerprint, false, excluded.expires, CAST(NULL AS bytea) WHERE {_FREE}
    UNION ALL SELECT c.owner, c.fingerprint, c.done, c.expires, c.reply WHERE NOT ({_FREE}))
"""
_STATE = "owner, fingerprint, done, CAST(extract(epoch FROM expires - now()) AS float8), reply"

CLAIM = f"""
INSERT INTO msgbus_claim AS c (scope, key, owner, fingerprint, done, expires)
SELECT scope, key, owner, fingerprint, false, now() + lease * interval '1 second'
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::float8[]) AS w (scope, key, owner, fingerprint, lease)
ORDER BY scope COLLATE "C", key COLLATE "C"
{_TAKE}
RETURNING scope, key, {_STATE}
"""  # noqa: S608 - no value is put into the text
EXTEND = """
UPDATE msgbus_claim AS c SET expires = now() + w.lease * interval '1 second'
FROM unnest(%s::text[], %s::text[], %s::text[], %s::float8[]) AS w (scope, key, owner, lease)
WHERE c.scope = w.scope AND c.key = w.key AND c.owner = w.owner AND NOT c.done AND c.expires > now()
RETURNING c.scope, c.key, c.owner
"""
# A claim whose lease ended may have been purged; if nobody has taken the key since, it is completed all the same.
# One that its owner has completed before is completed again: the answer to the first time got lost.
COMPLETE = """
INSERT INTO msgbus_claim AS c (scope, key, owner, fingerprint, done, expires, reply)
SELECT scope, key, owner, fingerprint, true, now() + ttl * interval '1 second', reply
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::float8[], %s::bytea[])
    AS w (scope, key, owner, fingerprint, ttl, reply)
ORDER BY scope COLLATE "C", key COLLATE "C"
ON CONFLICT (scope, key) DO UPDATE SET done = true, expires = excluded.expires, reply = excluded.reply
WHERE c.owner = excluded.owner
RETURNING scope, key, owner
"""
RELEASE = """
DELETE FROM msgbus_claim AS c USING unnest(%s::text[], %s::text[], %s::text[]) AS w (scope, key, owner)
WHERE c.scope = w.scope AND c.key = w.key AND c.owner = w.owner AND NOT c.done
"""
PURGE = """
DELETE FROM msgbus_claim WHERE (scope, key) IN (
    SELECT scope, key FROM msgbus_claim WHERE expires <= now() ORDER BY expires LIMIT %s FOR UPDATE SKIP LOCKED)
"""

STATEMENTS = Statements(
    create=_CREATE,
    exists=_EXISTS,
    # The lock belongs to the application's transaction and ends with it. Without it a duplicate would wait, with a
    # connection, for as long as the first one's handler takes.
    claim=f"""
INSERT INTO msgbus_claim AS c (scope, key, owner, fingerprint, done, expires)
SELECT CAST(:scope AS text), CAST(:key AS text), CAST(:owner AS text), CAST(:fingerprint AS text), false,
    now() + CAST(:lease AS float8) * interval '1 second'
WHERE pg_try_advisory_xact_lock(hashtextextended(CAST(:scope AS text) || '|' || CAST(:key AS text), 0))
{_TAKE}
RETURNING {_STATE}
""",
    complete="""
INSERT INTO msgbus_claim AS c (scope, key, owner, fingerprint, done, expires, reply)
VALUES (CAST(:scope AS text), CAST(:key AS text), CAST(:owner AS text), CAST(:fingerprint AS text), true,
    clock_timestamp() + CAST(:ttl AS float8) * interval '1 second', CAST(:reply AS bytea))
ON CONFLICT (scope, key) DO UPDATE SET done = true, expires = excluded.expires, reply = excluded.reply
WHERE c.owner = excluded.owner
RETURNING owner
""",
    release="DELETE FROM msgbus_claim WHERE scope = CAST(:scope AS text) AND key = CAST(:key AS text) "
    "AND owner = CAST(:owner AS text) AND NOT done",
    purge=PURGE.replace("%s", "CAST(:limit AS int)") + "RETURNING 1",
)
"""For `Idempotency(within=)`; without ``::``, which some drivers take for a parameter."""
