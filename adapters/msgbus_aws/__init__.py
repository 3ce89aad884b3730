"""msgbus on Amazon SQS, with SNS for topics, and an idempotency store in DynamoDB; over boto3.

URL
    ``sqs://eu-central-1`` is a region, ``sqs://eu-central-1/123456789012`` another account's queues and topics in it.
    Credentials are found as boto3 finds them, never in the URL. The store is ``dynamodb://region/table``.

Options
    `msgbus_aws._options.AwsOptions` lists them: ``endpoint``, ``wait``, ``timeout``, ``max_message``, ``retention``,
    ``max_receive_count``, ``large``, ``max_large``, ``kms``, ``sns``.

Semantics
    - A queue is an SQS queue, a keyed one a FIFO queue with the key as message group. A topic is an SNS topic (FIFO
      if keyed), a group of it an SQS queue that is subscribed with raw delivery.
    - Publishing is confirmed by the service. Concurrent publishes share requests of ten messages, each with its own
      result; the messages of one key are never in two requests at once.
    - A received message is hidden from others (its visibility timeout is its lease) until it is deleted. Leases are
      renewed, for twelve hours at most, and measured here: nothing is sent for a message whose lease is over.
    - A retry waits in place for up to twelve hours; on a FIFO queue its whole message group waits with it.
    - Delays are SQS's own up to fifteen minutes, then go from hop to hop. For topics and keyed channels they wait in
      a queue beside the channel.
    - Dead letters are in a queue beside the source's, reached by msgbus's own moves and, as a net for consumers that
      die, by SQS's redrive policy.
    - `Received.deliveries` is SQS's count of receives.

Limits
    - A poll that runs cannot be called off. What it brings after the subscription was closed goes back at once, but its
      thread lives for up to ``wait`` seconds.
    - No patterns, no replay from the past, no browsing, no parked keys.
    - `docs/adapters/aws.md` has the permissions that each operation needs, and what emulators get wrong.

Escape hatch
    ``adapter.raw`` is the boto3 SQS client, `Received.raw` the message as boto3 returned it. ``native={...}`` on a
    channel names queues, topics, filter policies and queue attributes.

How it is built: `_adapter` publishes, declares and subscribes; `_outbox` gathers messages into requests; `_poller`
receives in threads and `_subscription` knows what is held; `_settle` and `_moves` end it; `_topology` makes and finds
queues and topics, by the names of `_names`; `_wire` turns messages into what SQS carries; `_link` owns clients and
threads.
"""

from __future__ import annotations

from msgbus_aws._adapter import SqsAdapter
from msgbus_aws._store import DynamoDBStore

__all__ = ["DynamoDBStore", "SqsAdapter"]
