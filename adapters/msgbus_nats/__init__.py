"""NATS."""

from msgbus_nats._adapter import NatsAdapter

__all__ = ["NatsAdapter"]
