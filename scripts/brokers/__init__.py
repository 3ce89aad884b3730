"""Real brokers on demand: for the tests, the benchmarks, the demos, and by hand with ``python -m scripts.brokers``.

    with start("rabbitmq") as broker:
        bus = Bus(broker.url)
        broker.restart()  # or kill() and start(), pause() and resume(): same port, same data

It is a package of its own rather than a part of the tests because benchmarks, demos and ``make brokers`` need it too.
``MSGBUS_TEST_<BROKER>_URL`` names one that runs already; it is used as it is and cannot be stopped from here.
"""

from __future__ import annotations

import importlib
import os

from scripts.brokers._broker import Broker, BrokerError, BrokerMissing
from scripts.brokers._external import ExternalBroker

__all__ = ["BROKERS", "Broker", "BrokerError", "BrokerMissing", "broker_class", "make", "start", "url_variable"]

BROKERS = {
    "rabbitmq": "scripts.brokers.rabbitmq:RabbitMQ",
    "nats": "scripts.brokers.nats:NATS",
    "kafka": "scripts.brokers.kafka:Kafka",
    "elasticmq": "scripts.brokers.aws:ElasticMQ",
    "ministack": "scripts.brokers.aws:MiniStack",
    "fauxqs": "scripts.brokers.aws:FauxQS",
    "moto": "scripts.brokers.aws:Moto",
    "dynamodb": "scripts.brokers.aws:DynamoDBLocal",
    "redis": "scripts.brokers.databases:Redis",
    "postgres": "scripts.brokers.databases:Postgres",
}
"""Each broker's name and where its class lives."""


def url_variable(name: str) -> str:
    """Return the environment variable that names a broker which runs already."""
    return f"MSGBUS_TEST_{name.upper()}_URL"


def broker_class(name: str) -> type[Broker]:
    """Return the class that installs and runs the named broker.

    Raises:
        BrokerError: There is no broker of that name.
    """
    try:
        module, _, attribute = BROKERS[name].partition(":")
    except KeyError:
        raise BrokerError(f"no broker is called {name!r}; there are: {', '.join(BROKERS)}") from None
    found: type[Broker] = getattr(importlib.import_module(module), attribute)
    return found


def make(name: str) -> Broker:
    """Return the named broker, not started yet: one of our own, or the one that the environment names.

    Raises:
        BrokerMissing: Something that it needs is not installed; the text says how to get it.
    """
    cls = broker_class(name)
    if url := os.environ.get(url_variable(name)):
        return ExternalBroker(name, url)
    return cls()


def start(name: str) -> Broker:
    """Start the named broker and return it when it serves clients; use it in a ``with``, or call ``close()``.

    Raises:
        BrokerMissing: Something that it needs is not installed; the text says how to get it.
        BrokerError: It did not start; the text shows the tail of its log.
    """
    broker = make(name)
    try:
        broker.start()
    except BaseException:
        broker.close()
        raise
    return broker
