"""msgbus on Amazon SQS and SNS."""

from __future__ import annotations

from msgbus_aws._adapter import SqsAdapter
from msgbus_aws._store import DynamoDBStore

__all__ = ["DynamoDBStore", "SqsAdapter"]
