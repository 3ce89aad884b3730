"""What channels, groups and their side topics are called at the broker.

Channel names are Kafka topic names as they are. What the adapter adds is joined by two dots, which no channel or
group name contains, so nothing of ours ever meets a channel's name:

=======================================  ===========================  ==========================
what                                     queue ``orders``             topic ``placed``, group ``mail``
=======================================  ===========================  ==========================
messages                                 ``orders``                   ``placed``
consumer group                           ``orders``                   ``placed..mail``
dead letters, and who manages them       ``orders..dlq``              ``placed..mail..dlq``
waiting up to a minute, an hour, a day   ``orders..retry.60``, …      ``placed..mail..retry.60``, …
published with a delay, the same steps   ``orders..retry.60``, …      ``placed..delay.60``, …
=======================================  ===========================  ==========================

On keyed channels ``keyed`` stands for ``retry``. A pattern's side topics begin with a dot: ``.order._2a..mail..dlq``
belongs to ``order.*``. Answers to a service's requests are in ``<service>..replies``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgbus.adapter import Address, Kind, Source, escape_name, is_pattern, pattern_regex
from msgbus.errors import ChannelError

__all__ = [
    "MAX_DELAY",
    "NATIVE",
    "STEPS",
    "channel_regex",
    "dead_of",
    "delay_of",
    "group_of",
    "replies_of",
    "retries_of",
    "step_for",
    "subscription_of",
    "topic_of",
]

STEPS = (60, 3600, 86_400)
"""The delays' classes in seconds. Messages of one topic may overtake each other only within a window held in memory,
so short delays must not queue behind long ones; more steps would be more topics for every subscription."""
MAX_DELAY = float(STEPS[-1])
_LONGEST = 249
NATIVE = frozenset({"topic", "group_id", "partitions", "replication", "retention", "compact", "config", "start"})


def topic_of(address: Address) -> str:
    """Return the topic that carries *address*.

    Raises:
        ChannelError: Kafka cannot have such a name, or a native option is unknown.
    """
    if unknown := set(address.native) - NATIVE:
        raise ChannelError(
            f"{address}: Kafka has no native option {', '.join(map(repr, sorted(unknown)))}; "
            f"it knows {', '.join(sorted(NATIVE))}"
        )
    return _checked(str(address.native.get("topic", address.name)), address)


def subscription_of(source: Source) -> str:
    """Return the name that all side topics of *source* begin with."""
    address = source.address
    pattern = is_pattern(address.name)
    name = "." + escape_name(address.name, allowed=".-", escape="_") if pattern else topic_of(address)
    return f"{name}..{source.group}" if source.group else name


def group_of(source: Source) -> str:
    """Return the consumer group of *source*."""
    if source.dead:
        return dead_of(source)
    native: Mapping[str, Any] = source.address.native
    template = str(native.get("group_id", ""))
    return template.replace("{group}", source.group) if template else subscription_of(source)


def dead_of(source: Source) -> str:
    """Return the topic of the dead letters of *source*."""
    return _checked(f"{subscription_of(source.alive)}..dlq", source)


def retries_of(source: Source) -> dict[int, str]:
    """Return the topics in which messages of *source* wait, by step."""
    # Where a key keeps its order, retries wait in memory, and these topics are for published delays alone. Their
    # name tells how the channel was declared.
    prefix = f"{subscription_of(source)}..{'keyed' if source.address.keyed else 'retry'}"
    return {step: _checked(f"{prefix}.{step}", source) for step in STEPS}


def delay_of(address: Address) -> dict[int, str]:
    """Return the topics in which messages wait to be published to *address*, by step.

    Where a queue's messages wait does not matter, so they wait where its retries do; a topic's are forwarded to it.
    """
    if address.kind is not Kind.TOPIC:
        return retries_of(Source(address))
    return {step: _checked(f"{topic_of(address)}..delay.{step}", address) for step in STEPS}


def replies_of(service: str) -> str:
    """Return the topic of the answers to a service's requests."""
    return f"{escape_name(service, allowed='.-', escape='_')}..replies"


def step_for(delay: float) -> int:
    """Return the shortest step in which *delay* seconds fit."""
    return next((step for step in STEPS if delay <= step), STEPS[-1])


def channel_regex(source: Source) -> str:
    """Return the expression that matches the topics of a pattern's source, and its own retry topics."""
    retries = "|".join(re.escape(topic) for topic in retries_of(source).values())
    return rf"(?:{pattern_regex(source.address.name)}|{retries})\Z"


def _checked(topic: str, what: Address | Source) -> str:
    if len(topic) > _LONGEST:
        raise ChannelError(f"{what} needs the topic {topic[:60]!r}…, and Kafka takes at most {_LONGEST} characters")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", topic) or topic in (".", ".."):
        raise ChannelError(f"{what}: Kafka topics consist of letters, digits, '.', '_' and '-', got {topic!r}")
    return topic
