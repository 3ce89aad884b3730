"""The in-memory broker: nothing to install, nothing kept. For tests, and the model other adapters are compared with.

**URL**: ``memory://`` gives each bus a broker of its own; ``memory://name`` is one broker for all buses of the process
that name it, and lives as long as one of them. It has no options. The same goes for the idempotency store.

**Delivery**: at least once, within the process. A message stays until it is acked; one that is received and neither
settled nor extended within its lease comes again; a lost lease is told as `msgbus.errors.LeaseLost` and harms nobody.
Delays, leases and ages follow the injected clock, so a virtual clock drives everything.

**Order**: by age, and strictly per key on keyed channels. A message that is published with a delay takes its place
when it comes due; one that is given back keeps its place, and its key waits for it.

**Limits**: one process, one event loop; bodies up to 16 MiB; no replay; nothing survives the process.

**Escape hatch**: `MemoryAdapter.raw` is the broker model.
"""

from __future__ import annotations

from msgbus_memory._adapter import MemoryAdapter
from msgbus_memory._store import MemoryStore

__all__ = ["MemoryAdapter", "MemoryStore"]
