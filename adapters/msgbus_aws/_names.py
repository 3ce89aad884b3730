"""Which queue and which topic a channel has.

==========================================  ===========================================
``Queue("orders.new")``                     queue ``orders_2enew``
with a key                                  queue ``orders_2enew.fifo``
``Topic("order.placed")``                   topic ``order_2eplaced``
its group ``email``                         queue ``order_2eplaced__email``
``RequestReply("price")``                   queue ``price_requests``
dead letters of any of these                the queue's name with ``_dlq``
what waits for a topic or a keyed channel   ``order_2eplaced_later_topic``, ``orders_later``
one process's answers                       ``msgbus_replies_<random>``
==========================================  ===========================================

Names take ASCII letters, digits and hyphens as they are; everything else becomes ``_`` and two hexadecimal digits.
The words added after an underscore begin with no hexadecimal digits, so that no two names meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgbus.adapter import Address, Kind, Source, escape_name
from msgbus.errors import ChannelError

__all__ = ["REPLIES", "QueueName", "TopicName", "filter_policy", "later_queue", "queue_of", "topic_of"]

REPLIES = "msgbus_replies_"
_QUEUE_MOST = 80
_TOPIC_MOST = 256
_NATIVE = frozenset({"queue", "queues", "topic", "filter_policy", "filter_scope", "attributes"})


@dataclass(frozen=True, slots=True)
class QueueName:
    """A queue.

    Attributes:
        name: Its name at SQS.
        fifo: Whether it is a FIFO queue.
        owner: The account that owns it, or empty for the one of the URL.
        url: Its URL where that was given; else it is asked for.
        ours: Whether msgbus may make it; False for one that a channel joins.
    """

    name: str
    fifo: bool
    owner: str = ""
    url: str = ""
    ours: bool = True

    @property
    def lane_sibling(self) -> str:
        """The name that the same channel would have with a key, or without one."""
        return self.name.removesuffix(".fifo") if self.fifo else f"{self.name}.fifo"


@dataclass(frozen=True, slots=True)
class TopicName:
    """A topic.

    Attributes:
        name: Its name at SNS.
        fifo: Whether it is a FIFO topic.
        arn: Its ARN where that was given; else it is asked for.
    """

    name: str
    fifo: bool
    arn: str = ""


def queue_of(source: Source) -> QueueName:
    """Return the queue of *source*.

    Raises:
        ChannelError: Its name does not fit.
    """
    address = source.address
    if address.kind is Kind.REPLY:
        return QueueName(address.name, fifo=False)
    joined = _joined(source)
    stem = _stem(source)
    if joined and not source.dead:
        return _given(joined, source)
    return _queue(f"{stem}_dlq" if source.dead else stem, address)


def later_queue(address: Address) -> QueueName:
    """Return the queue in which delayed messages wait for a topic or a keyed channel."""
    stem = escape_name(address.name, allowed="-", escape="_") + "_later"
    words = {Kind.TOPIC: "_topic", Kind.REQUEST: "_requests"}
    return _queue(stem + words.get(address.kind, ""), address, keyed=False)


def topic_of(address: Address) -> TopicName:
    """Return the topic of *address*.

    Raises:
        ChannelError: Its name does not fit.
    """
    _check_native(address)
    if given := address.native.get("topic"):
        arn = _text(address, "topic", given)
        name = arn.rpartition(":")[2]
        if not arn.startswith("arn:") or name.endswith(".fifo") != address.keyed:
            raise ChannelError(
                f"native={{'topic': …}} of {address} takes the ARN of a {'FIFO' if address.keyed else 'standard'} "
                f"topic, got {arn!r}"
            )
        return TopicName(name, address.keyed, arn)
    name = escape_name(address.name, allowed="-", escape="_") + (".fifo" if address.keyed else "")
    if len(name) > _TOPIC_MOST:
        raise ChannelError(f"{address} has {len(name)} characters as the topic {name!r}, SNS takes {_TOPIC_MOST}")
    return TopicName(name, address.keyed)


def filter_policy(address: Address) -> dict[str, Any]:
    """Return the filter policy that a topic's subscriptions shall have, or nothing."""
    _check_native(address)
    found = address.native.get("filter_policy") or {}
    if not isinstance(found, dict):
        raise ChannelError(f"native={{'filter_policy': …}} of {address} takes a dict, got {found!r}")
    return found


def _stem(source: Source) -> str:
    stem = escape_name(source.address.name, allowed="-", escape="_")
    if source.address.kind is Kind.TOPIC:
        return f"{stem}__{escape_name(source.group, allowed='-', escape='_')}"
    return f"{stem}_requests" if source.address.kind is Kind.REQUEST else stem


def _queue(stem: str, address: Address, *, keyed: bool | None = None) -> QueueName:
    fifo = address.keyed if keyed is None else keyed
    name = stem + (".fifo" if fifo else "")
    if len(name) > _QUEUE_MOST:
        raise ChannelError(
            f"{address} needs a queue called {name!r}, which has {len(name)} characters; SQS takes {_QUEUE_MOST}"
        )
    return QueueName(name, fifo)


def _joined(source: Source) -> str:
    _check_native(source.address)
    native = source.address.native
    if source.address.kind is Kind.TOPIC:
        queues = native.get("queues") or {}
        return _text(source.address, "queues", queues[source.group]) if source.group in queues else ""
    return _text(source.address, "queue", native["queue"]) if "queue" in native else ""


def _given(given: str, source: Source) -> QueueName:
    """Read a queue's name, URL or ARN."""
    url = owner = ""
    name = given
    if given.startswith("arn:"):
        *_, owner, name = given.split(":")
    elif "://" in given:
        url = given
        owner, name = (["", *given.rstrip("/").split("/")])[-2:]
    if name.endswith(".fifo") != source.address.keyed:
        raise ChannelError(
            f"{source} joins the queue {name!r}, which is {'a' if name.endswith('.fifo') else 'no'} FIFO queue, and "
            f"the channel has {'a' if source.address.keyed else 'no'} key"
        )
    return QueueName(name, source.address.keyed, owner, url, ours=False)


def _check_native(address: Address) -> None:
    if unknown := address.native.keys() - _NATIVE:
        raise ChannelError(
            f"native= of {address} has {', '.join(sorted(unknown))}; sqs knows {', '.join(sorted(_NATIVE))}"
        )
    wrong = {"queue"} if address.kind is Kind.TOPIC else {"queues", "topic", "filter_policy", "filter_scope"}
    if found := address.native.keys() & wrong:
        raise ChannelError(f"native= of {address} has {', '.join(sorted(found))}, which is not for a {address.kind}")


def _text(address: Address, option: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ChannelError(f"native={{{option!r}: …}} of {address} takes text, got {value!r}")
    return value
