"""msgbus on Amazon SQS and SNS."""

from __future__ import annotations

from msgbus_aws._adapter import SqsAdapter

__all__ = ["SqsAdapter"]
