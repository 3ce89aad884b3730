"""Prove from what happened that nothing was lost: a recorder, a history, and the rules that it has to keep.

Every process of a run has a `Journal` of its own. A `Recorder` writes each publish attempt, delivery, handler call,
settlement and dead letter into it; whoever breaks things writes down the faults. Afterwards `read_history` puts the
journals together and `check_history` compares them with the rules:

- ``lost``: each confirmed message was handled or dead-lettered, in each subscription of its channel;
- ``invented``: nothing appears that was never published, or whose publish certainly failed;
- ``order``: no message of a key starts before the earlier ones of that key are handled or dead-lettered;
- ``attempts``: no message is tried more often than its policy allows;
- ``expired`` and ``early``: nothing is handled after its expiry, or before its time;
- ``repeated``: an idempotent handler that succeeded does not run again, and its effect is there once;
- ``explained``: each dead letter's reason is borne out by what happened;
- ``complaint``: nobody saw anything that must not be.

`Findings.describe` shows the history of the messages that broke one, with the faults of that time.
`msgbus.testing.chaos` is a whole run made of it; nothing here depends on that one.
"""

from __future__ import annotations

from msgbus.testing.history._account import Account, Attempt, Fate, Run, Subscribed
from msgbus.testing.history._check import Counts, Findings, HistoryError, check_history
from msgbus.testing.history._events import Event, EventKind, Journal, read_history
from msgbus.testing.history._recorder import Recorder
from msgbus.testing.history._rules import Violation

__all__ = [
    "Account",
    "Attempt",
    "Counts",
    "Event",
    "EventKind",
    "Fate",
    "Findings",
    "HistoryError",
    "Journal",
    "Recorder",
    "Run",
    "Subscribed",
    "Violation",
    "check_history",
    "read_history",
]
