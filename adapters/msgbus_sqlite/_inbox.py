"""What `Idempotency(within=)` runs on an application's own connection. Nothing is needed beyond SQLite 3.35."""

from __future__ import annotations

from msgbus.store import Statements
from msgbus_sqlite._schema import STORE, idempotent

__all__ = ["STATEMENTS"]

_FREE = """
msgbus_claim.expires <= :now
OR (NOT msgbus_claim.done AND msgbus_claim.owner = :owner AND msgbus_claim.fingerprint = :fingerprint)
"""

STATEMENTS = Statements(
    create=idempotent(STORE),
    exists="SELECT 1 FROM msgbus_claim LIMIT 0",
    # An existing record that is not free is written again as it is: so that it can be returned.
    claim=f"""
INSERT INTO msgbus_claim (scope, key, owner, fingerprint, done, expires, reply)
VALUES (:scope, :key, :owner, :fingerprint, 0, :now + :lease, NULL)
ON CONFLICT (scope, key) DO UPDATE SET
    owner = iif({_FREE}, excluded.owner, msgbus_claim.owner),
    fingerprint = iif({_FREE}, excluded.fingerprint, msgbus_claim.fingerprint),
    done = iif({_FREE}, 0, msgbus_claim.done),
    expires = iif({_FREE}, excluded.expires, msgbus_claim.expires),
    reply = iif({_FREE}, NULL, msgbus_claim.reply)
RETURNING owner, fingerprint, done, expires - :now, reply
""",  # noqa: S608 - no value is put into the text
    complete="""
INSERT INTO msgbus_claim (scope, key, owner, fingerprint, done, expires, reply)
VALUES (:scope, :key, :owner, :fingerprint, 1, :now + :ttl, :reply)
ON CONFLICT (scope, key) DO UPDATE SET done = 1, expires = excluded.expires, reply = excluded.reply
WHERE owner = excluded.owner
RETURNING owner
""",
    release="DELETE FROM msgbus_claim WHERE scope = :scope AND key = :key AND owner = :owner AND NOT done",
    purge="""
DELETE FROM msgbus_claim WHERE (scope, key) IN (
    SELECT scope, key FROM msgbus_claim WHERE expires <= :now ORDER BY expires LIMIT :limit)
RETURNING 1
""",
)
