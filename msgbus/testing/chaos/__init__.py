"""Break things on purpose, under a seed, and check that nothing was lost.

`run_chaos` runs a bounded workload on a broker: producers and worker processes; queues with and without keys, a topic
with three groups, requests; retries, poison, delays, expiry, duplicates that idempotent handlers absorb. Meanwhile two
schedules of faults, drawn from the seed, kill, stop and end workers, and kill, stop, restart and cut off the broker.
Then everything is healed, the messages come to rest, and the history is checked (see `msgbus.testing.history`).

A `Target` says where the broker is and what can be done to it; what it does not have is left out of the schedule.
"""

from __future__ import annotations

from msgbus.testing.chaos._run import Outcome, run_chaos
from msgbus.testing.chaos._schedule import BROKER_FAULTS, Step, make_schedule
from msgbus.testing.chaos._table import render
from msgbus.testing.chaos._target import Controllable, Target

__all__ = ["BROKER_FAULTS", "Controllable", "Outcome", "Step", "Target", "make_schedule", "render", "run_chaos"]
