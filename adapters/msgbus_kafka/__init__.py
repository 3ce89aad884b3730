"""Apache Kafka, through aiokafka."""

from __future__ import annotations

from msgbus_kafka._adapter import KafkaAdapter

__all__ = ["KafkaAdapter"]
