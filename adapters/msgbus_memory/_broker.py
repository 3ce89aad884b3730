"""The reference model of a broker: addresses, groups and their boxes. Pure and synchronous.

Every call says what time it is, so that the model can be driven by any clock; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from weakref import WeakValueDictionary

from msgbus.adapter import Address, Kind, Outgoing, Provision, Source, Topology, is_pattern, match_name
from msgbus.errors import MessageTooLarge, PublishError, TopologyError, Unroutable
from msgbus_memory._boxes import Box, Entry
from msgbus_memory._lines import KeyedBox

__all__ = ["MAX_BODY", "Broker", "named_broker"]

MAX_BODY = 16 * 1024 * 1024
"""Nothing in a process needs a limit; with none, a runaway body would first be noticed by the out-of-memory killer."""

_NAMED: WeakValueDictionary[str, Broker] = WeakValueDictionary()


def named_broker(name: str) -> Broker:
    """Return the process's broker of that name; it lives as long as an adapter uses it."""
    return _NAMED.setdefault(name, Broker())


@dataclass(slots=True)
class _Route:
    """What a name stands for: whether it was declared, and which boxes its messages go to."""

    declared: bool
    boxes: tuple[Box, ...]


class Broker:
    """Addresses, the boxes of their sources, and the way from the one to the other."""

    def __init__(self) -> None:
        self._addresses: dict[tuple[Kind, str], Address] = {}
        self._boxes: dict[tuple[Kind, str, str], Box] = {}
        self._routes: dict[tuple[Kind, str], _Route] = {}
        self._replies = count(1)

    def declare(self, topology: Topology, provision: Provision) -> None:
        """Create, verify or skip what *topology* names.

        Raises:
            TopologyError: Something is missing (verify) or differs.
        """
        if provision is Provision.SKIP:
            return
        wanted = [*topology.addresses, *(source.address for source in topology.sources)]
        for address in wanted:
            self._compare(address)
        if provision is Provision.VERIFY:
            missing = [str(a) for a in wanted if (a.kind, a.name) not in self._addresses and not is_pattern(a.name)]
            missing += [str(source) for source in topology.sources if _place(source) not in self._boxes]
            if missing:
                raise TopologyError(f"not declared at the memory broker: {', '.join(missing)}")
            return
        for address in wanted:
            self._addresses.setdefault((address.kind, address.name), address)
        for address in topology.addresses:
            if address.kind is not Kind.TOPIC:
                self._create(Source(address))
        for source in topology.sources:
            self._create(source.alive)
        self._routes.clear()

    def publish(self, batch: Sequence[Outgoing], now: float) -> list[PublishError | None]:
        """Put each message into the boxes of its target; return each one's error or None."""
        results: list[PublishError | None] = []
        touched: set[Box] = set()
        target, route = None, _Route(declared=False, boxes=())
        for message in batch:
            if message.target is not target:
                target = message.target
                route = self._route(target)
                touched.update(route.boxes)
                for box in route.boxes:
                    box.tick(now)  # what came due before is older
            if not (route.declared or route.boxes):
                results.append(Unroutable(f"{target} is not declared at the memory broker"))
                continue
            if len(message.body) > MAX_BODY:
                results.append(MessageTooLarge(len(message.body), MAX_BODY))
                continue
            headers = dict(message.headers)
            channel = message.channel or (target.name if isinstance(target, Address) else target.address.name)
            for box in route.boxes:
                box.push(Entry(message.body, headers, message.id, message.key, channel), now, message.delay)
            results.append(None)
        for box in touched:
            box.wake()
        return results

    def box(self, source: Source) -> Box:
        """Return the box of *source*.

        Raises:
            TopologyError: It was not declared.
        """
        box = self._boxes.get(_place(source))
        if box is None or (source.dead and box.dead is None):
            raise TopologyError(f"{source} is not declared at the memory broker")
        return box.dead if source.dead and box.dead is not None else box

    def create_reply(self, name: str) -> Address:
        """Create a private place for answers and return its address."""
        address = Address(Kind.REPLY, f"{name}.{next(self._replies)}")
        self._create(Source(address))
        return address

    def remove_reply(self, address: Address) -> None:
        """Remove a private place for answers with all that is in it."""
        self._boxes.pop(_place(Source(address)), None)
        self._routes.pop((address.kind, address.name), None)

    def remove(self, source: Source) -> None:
        """Remove *source* with all that is in it."""
        self._boxes.pop(_place(source), None)
        if source.address.kind is not Kind.TOPIC:
            self._addresses.pop((source.address.kind, source.address.name), None)
        self._routes.clear()

    def _compare(self, address: Address) -> None:
        known = self._addresses.get((address.kind, address.name))
        if known is not None and known.keyed != address.keyed:
            raise TopologyError(
                f"{address} exists with keyed={known.keyed} at the memory broker, it was declared with "
                f"keyed={address.keyed}"
            )

    def _create(self, source: Source) -> None:
        place = _place(source)
        if place not in self._boxes:
            dead = Box(str(source.dead_letters), None)
            self._boxes[place] = (KeyedBox if source.address.keyed else Box)(str(source), dead)

    def _route(self, target: Address | Source) -> _Route:
        if isinstance(target, Source):
            box = self._boxes.get(_place(target))
            box = box.dead if box is not None and target.dead else box
            return _Route(declared=False, boxes=() if box is None else (box,))
        name = (target.kind, target.name)
        route = self._routes.get(name)
        if route is None:
            route = self._routes[name] = _Route(name in self._addresses, tuple(self._boxes_of(target)))
        return route

    def _boxes_of(self, address: Address) -> list[Box]:
        if address.kind is not Kind.TOPIC:
            box = self._boxes.get(_place(Source(address)))
            return [] if box is None else [box]
        return [
            box for (kind, name, _), box in self._boxes.items() if kind is Kind.TOPIC and _takes(name, address.name)
        ]


def _place(source: Source) -> tuple[Kind, str, str]:
    return source.address.kind, source.address.name, source.group


def _takes(wanted: str, name: str) -> bool:
    return match_name(wanted, name) if is_pattern(wanted) else wanted == name
