"""Who takes part, by broker. Modules are loaded in the contender's own process, so that each imports what it needs."""

from __future__ import annotations

__all__ = ["CONTENDERS", "SERVERS"]

_HERE = __name__


def _specs(*names: str) -> tuple[str, ...]:
    return tuple(f"{_HERE}.{name}" for name in names)


CONTENDERS: dict[str, tuple[str, ...]] = {
    "memory": _specs("ours:Memory", "embedded:AsyncioQueue"),
    "sqlite": _specs("ours:SQLite", "embedded:SQLite3"),
    "rabbitmq": _specs(
        "ours:RabbitMQ",
        "rabbitmq:PyAMQP",
        "rabbitmq:Kombu",
        "faststream_rabbitmq:FastStream",
        "faststream_rabbitmq:FastStreamDefaults",
        "taskiq_rabbitmq:Taskiq",
        "dramatiq_rabbitmq:Dramatiq",
    ),
    "nats": _specs(
        "ours:NATS",
        "nats_py:NatsPy",
        "faststream_nats:FastStream",
        "faststream_nats:FastStreamDefaults",
        "taskiq_nats:Taskiq",
        "repid_nats:Repid",
    ),
    "kafka": _specs(
        "ours:Kafka",
        "kafka_raw:AIOKafka",
        "faststream_kafka:FastStream",
        "faststream_kafka:FastStreamDefaults",
        "repid_kafka:Repid",
    ),
    "aws": _specs(
        "ours:SQS", "boto:Batches", "boto:OneByOne", "taskiq_sqs:Taskiq", "dramatiq_sqs:Dramatiq", "repid_sqs:Repid"
    ),
}

SERVERS = {"rabbitmq": "rabbitmq", "nats": "nats", "kafka": "kafka", "aws": "ministack"}
"""Which of the brokers that can be started here stands for it."""
