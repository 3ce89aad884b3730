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
        "**`publish_batch`** hands bodies to the client, for a partition that its caller names. msgbus gives each "
        "message an id, a time and a type (CloudEvents), its partition and a result of its own. Kafka's own Java "
        "producer reaches 1.3 to 2.2 times the rate of `publish_batch` on this machine, not four.",
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
        "**A bare loop of batches** makes the same requests, as many, and most of either's CPU time is botocore's. "
        "msgbus takes a tenth more for each message's headers, lease and own result.",
        brokers=("aws",),
        cases=("end-to-end",),
        names=("boto3",),
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
    Reason(
        "**The first consumer** of a process loads the 55 modules by which kombu declares queues: of 2.9 MiB, 1.7 are "
        "theirs. A second consumer of the same process takes 0.5.",
        brokers=("rabbitmq",),
        cases=("memory",),
    ),
)


def why(broker: str, case: str, name: str) -> str:
    """Return why msgbus is behind *name* in a case."""
    return next((reason.text for reason in REASONS if reason.holds(broker, case, name)), UNKNOWN)
