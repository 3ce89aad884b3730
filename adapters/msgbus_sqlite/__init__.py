"""msgbus on SQLite."""

from msgbus_sqlite._adapter import SQLiteAdapter
from msgbus_sqlite._store import SQLiteStore

__all__ = ["SQLiteAdapter", "SQLiteStore"]
