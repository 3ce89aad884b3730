"""Why msgbus is slower where it is: what the page says beside each comparison that it loses."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REASONS", "UNKNOWN", "Reason", "why"]


@dataclass(frozen=True)
class Reason:
    """One reason.

    Attributes:
        text: A sentence or two.
        brokers: Where it holds; empty for everywhere.
        cases: What the cases' names begin with; empty for all.
        names: What the contenders' names begin with; empty for all.
    """

    text: str
    brokers: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def holds(self, broker: str, case: str, name: str) -> bool:
        """Return whether it is the reason there."""
        return (
            (not self.brokers or broker in self.brokers)
            and (not self.cases or case.startswith(self.cases))
            and (not self.names or name.startswith(self.names))
        )


UNKNOWN = "Not looked into yet."

REASONS = (
    Reason(
        "**Importing** brings pydantic, which checks payloads, on top of the client that the other imports too.",
        cases=("import",),
    ),
    Reason(
        "**Retries** wait before they try again, here up to 10 ms (on SQS whole seconds, which is what it counts "
        "in), and count attempts. The others try at once.",
        cases=("retries",),
    ),
    Reason(
        "**A bare table** with one consumer needs neither leases nor groups, and sqlite3 calls the file on the event "
        "loop. msgbus does that in a thread, so that a slow disk does not stop the program; a single publish pays for "
        "the way to that thread and back, one in a batch hardly.",
        brokers=("sqlite",),
    ),
    Reason(
        "**A bare `getmany` loop** calls a handler and commits. msgbus also keeps each message's state, so that "
        "handlers run at once, fail alone and are retried.",
        brokers=("kafka",),
        cases=("consume", "end-to-end"),
        names=("aiokafka",),
    ),
    Reason(
        "**`publish_batch`** takes whole batches for one partition and hands them to the client as one; msgbus pays "
        "for a future per message, since each may fail by itself.",
        brokers=("kafka",),
        cases=("publish", "consume-batch"),
        names=("FastStream",),
    ),
    Reason(
        "**Large bodies** are copied once more, into one buffer with the frames of many messages, which is what makes "
        "small ones quick.",
        brokers=("rabbitmq", "nats"),
        cases=("publish/64KiB",),
    ),
    Reason(
        "**Bare publishes** carry a body. msgbus gives every message an id, a time and a type that other libraries "
        "can read (CloudEvents), and a result of its own.",
        cases=("publish", "latency"),
        names=("aiokafka", "nats-py", "py-amqp", "boto3"),
    ),
    Reason(
        "**Requests of nats-py** are bare publishes to an inbox. msgbus adds its headers, an expiry and typed errors "
        "on both ends.",
        brokers=("nats",),
        cases=("request",),
        names=("nats-py",),
    ),
    Reason(
        "**Starting** declares or checks the queue, its dead letters and what retries wait in, before anything is "
        "consumed; the others begin with a consumer.",
        cases=("start",),
    ),
)


def why(broker: str, case: str, name: str) -> str:
    """Return why msgbus is behind *name* in a case."""
    return next((reason.text for reason in REASONS if reason.holds(broker, case, name)), UNKNOWN)
