"""What all parts of one adapter share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgbus.adapter import AdapterConfig
from msgbus_aws._claims import Claims
from msgbus_aws._link import Link
from msgbus_aws._outbox import Outbox
from msgbus_aws._topology import Provisioner

__all__ = ["Tools"]


@dataclass(slots=True)
class Tools:
    """What all parts of one adapter share.

    Attributes:
        link: The clients.
        config: What the bus told the adapter.
        provisioner: Finds and makes queues and topics.
        outbox: Sends.
        claims: Keeps large bodies elsewhere.
        closed: Called by a subscription that was closed.
        ticked: When the adapter's clock last ticked (monotonic).
    """

    link: Link
    config: AdapterConfig
    provisioner: Provisioner
    outbox: Outbox
    claims: Claims
    closed: Callable[[Any], None]
    ticked: float = 0.0
