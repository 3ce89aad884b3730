"""An adapter beside the memory model: whatever a random sequence of operations does to one, it does to the other.

Both run on one virtual clock and are told the same things. The adapter may choose among the messages that the model
could hand out now, and nothing else: not what was acked, is held by somebody, is delayed, or stands behind another of
its key. What the model could hand out the adapter must, up to the limit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgbus._registry import adapter_class
from msgbus._url import BusURL
from msgbus.adapter import (
    DEAD,
    ID,
    Ack,
    Adapter,
    AdapterConfig,
    Address,
    DeadLetter,
    Nack,
    Outcome,
    Outgoing,
    Received,
    Source,
    SubscribeOptions,
    Subscription,
    Topology,
)
from msgbus.errors import SettleError
from msgbus.testing.clock import VirtualClock

__all__ = ["LEASE", "Fate", "Twin", "Verb", "World"]

LEASE = 10.37
"""Seconds; not a sum of the steps by which time goes on, so that a lease never ends at the very moment of a call."""
_ALL = 10_000

Verb = Literal["ack", "nack", "give back", "delay", "bury", "park"]


@dataclass(frozen=True)
class Fate:
    """What is to happen to a held message."""

    verb: Verb
    delay: float = 0.0

    def __str__(self) -> str:
        return f"{self.verb} {self.delay:g} s" if self.delay else self.verb

    def outcome(self, received: Received) -> Outcome:
        """Return it as an outcome."""
        headers = dict(received.headers)
        match self.verb:
            case "ack":
                return Ack(received)
            case "nack":
                return Nack(received, headers=headers)
            case "give back":
                return Nack(received, counted=False, headers=headers)
            case "delay":
                return Nack(received, self.delay, headers=headers)
            case "bury" | "park":
                return DeadLetter(received, {**headers, DEAD: "{}"}, park=self.verb == "park")


@dataclass
class Held:
    """One message in the hands of a twin: as the adapter and as the model gave it."""

    subject: Received
    image: Received
    until: float


@dataclass
class Twin:
    """One consumer, on the adapter and on the model."""

    name: str
    source: Source
    subject: Subscription
    image: Subscription
    held: dict[str, Held] = field(default_factory=dict)
    lost: dict[str, Held] = field(default_factory=dict)


class World:
    """The adapter, the model, and their consumers.

    Args:
        url: The adapter's.
        sources: What is consumed; all of one address.
    """

    def __init__(self, url: str, sources: Sequence[Source]) -> None:
        self.clock = VirtualClock()
        self.sources = tuple(sources)
        self.address = sources[0].address
        self.subject = self._adapter(url)
        self.model = self._adapter("memory://")
        self.twins: list[Twin] = []
        self.acked: dict[Source, set[str]] = defaultdict(set)
        self.story: list[str] = []
        # Lost by a consumer that left before anybody else took them: whether that was a delivery is nobody's promise.
        self._uncounted: set[str] = set()
        self._published = 0
        self._joined = 0

    def _adapter(self, url: str) -> Adapter:
        parsed = BusURL.parse(url)
        return adapter_class(parsed)(parsed, AdapterConfig(clock=self.clock))

    async def open(self) -> None:
        """Open and declare both."""
        for adapter in (self.subject, self.model):
            await adapter.open()
            await adapter.declare(Topology((self.address,), self.sources))

    async def aclose(self) -> None:
        """Close both."""
        await self.subject.aclose()
        await self.model.aclose()

    # -- what can happen ----------------------------------------------------------------------------------------

    async def publish(self, keys: Sequence[str | None], delay: float) -> None:
        """Publish a message per key."""
        messages = []
        for key in keys:
            self._published += 1
            messages.append(self._message(self.address, f"m{self._published}", key, delay))
        self._tell(
            f"publish {', '.join(f'{m.id}' + (f' of {m.key}' if m.key else '') for m in messages)}, delay {delay}"
        )
        await self._publish(messages)

    async def replay(self, twin: Twin, message_id: str) -> None:
        """Replay a held dead letter: publish it to its source, then drop it."""
        self._tell(f"replay {message_id}")
        key = twin.held[message_id].image.key
        await self._publish([self._message(twin.source.alive, message_id, key, 0.0)])
        self.acked[twin.source.alive].discard(message_id)
        await self.settle(twin, {message_id: Fate("ack")})
        self.acked[twin.source].discard(message_id)  # it may die again

    async def _publish(self, messages: Sequence[Outgoing]) -> None:
        for adapter in (self.subject, self.model):
            results = list(await adapter.publish(messages))
            assert results == [None] * len(messages), f"{adapter.name}: {results}"

    def _message(self, target: Address | Source, message_id: str, key: str | None, delay: float) -> Outgoing:
        return Outgoing(target, message_id.encode(), {ID: message_id, "h": "v"}, message_id, key, delay)

    async def join(self, source: Source) -> Twin:
        """Add a consumer."""
        options = SubscribeOptions(prefetch=_ALL, lease=LEASE)
        self._joined += 1
        name = f"consumer {self._joined} of {'dead letters' if source.dead else source.group or 'messages'}"
        twin = Twin(
            name, source, await self.subject.subscribe(source, options), await self.model.subscribe(source, options)
        )
        self.twins.append(twin)
        self._tell(f"{name} joins")
        return twin

    async def leave(self, twin: Twin) -> None:
        """Close a consumer; what it holds goes back."""
        self._tell(f"{twin.name} leaves")
        self._uncounted.update(twin.lost)
        await twin.subject.aclose()
        await twin.image.aclose()
        self.twins.remove(twin)

    async def receive(self, twin: Twin, limit: int) -> list[str]:
        """Receive on both; the adapter chooses from what the model offers."""
        got = {m.headers.get(ID, "?"): m for m in await twin.subject.receive(limit, 0)}
        offered = {m.headers[ID]: m for m in await twin.image.receive(_ALL, 0)}
        self._tell(f"{twin.name} receives up to {limit}: {list(got)} of {list(offered)}")
        for message_id, received in got.items():
            assert message_id in offered, self._why_not(twin, message_id)
            self._compare(received, offered[message_id])
        self._is_complete(twin, got, offered, limit)
        for message_id, received in got.items():
            self._hand_over(twin, message_id, Held(received, offered[message_id], self.clock.now() + LEASE))
        left = [Nack(m, counted=False) for message_id, m in offered.items() if message_id not in got]
        await twin.image.settle(left)
        return list(got)

    async def settle(self, twin: Twin, fates: Mapping[str, Fate]) -> None:
        """Settle held messages on both; each must succeed."""
        self._tell(f"{twin.name} settles {', '.join(f'{i}: {fate}' for i, fate in fates.items())}")
        held = [(fate, twin.held.pop(message_id)) for message_id, fate in fates.items()]
        verdicts = list(await twin.subject.settle([fate.outcome(item.subject) for fate, item in held]))
        images = list(await twin.image.settle([fate.outcome(item.image) for fate, item in held]))
        assert verdicts == images == [None] * len(held), f"settling {dict(fates)}: {verdicts}, the model: {images}"
        self.acked[twin.source].update(i for i, fate in fates.items() if fate.verb == "ack")

    async def settle_late(self, twin: Twin, message_id: str, fate: Fate) -> None:
        """Settle a message that somebody else holds by now: nothing may happen to it."""
        self._tell(f"{twin.name} settles {message_id} late: {fate}")
        lost = twin.lost.pop(message_id)
        (verdict,) = await twin.subject.settle([fate.outcome(lost.subject)])
        assert isinstance(verdict, SettleError), f"{message_id} is somebody else's, settling it gave {verdict!r}"

    async def extend(self, twin: Twin) -> None:
        """Extend all that a consumer holds."""
        self._tell(f"{twin.name} extends {list(twin.held)}")
        held = list(twin.held.values())
        verdicts = list(await twin.subject.extend([h.subject for h in held], LEASE))
        assert verdicts == [None] * len(held), f"extending {list(twin.held)}: {verdicts}"
        await twin.image.extend([h.image for h in held], LEASE)
        for item in held:
            item.until = self.clock.now() + LEASE

    async def advance(self, seconds: float) -> None:
        """Let time pass; leases that end make messages lost."""
        self._tell(f"{seconds} s pass")
        await self.clock.advance(seconds)
        for twin in self.twins:
            for message_id in [i for i, held in twin.held.items() if held.until <= self.clock.now()]:
                twin.lost[message_id] = twin.held.pop(message_id)

    async def compare_figures(self) -> None:
        """Compare what both tell about themselves."""
        for source in self.sources:
            mine, models = await self.subject.stats(source), await self.model.stats(source)
            names = ["dead", "in_flight"] if self.address.keyed else ["dead", "in_flight", "ready", "delayed"]
            for name in names:
                value, expected = getattr(mine, name), getattr(models, name)
                assert value in (None, expected), f"{name} of {source} is {value}, the model says {expected}"

    async def finish(self) -> None:
        """See that everything that is not acked can still be received, in the model's order of each key."""
        for twin in list(self.twins):
            await self.leave(twin)
        await self.advance(1_000_000)
        for source in self.sources:
            for part in (source.dead_letters, source):  # the dead first: what they hold back comes free
                twin = await self.join(part)
                while got := await self.receive(twin, 7):
                    await self.settle(twin, dict.fromkeys(got, Fate("ack")))

    def _tell(self, what: str) -> None:
        self.story.append(f"{self.clock.monotonic():8.2f}  {what}")

    # -- what must hold -----------------------------------------------------------------------------------------

    def loose(self, twin: Twin) -> list[str]:
        """Return the messages this twin lost that another one holds now."""
        others = [t.held for t in self.twins if t is not twin and t.source == twin.source]
        return [message_id for message_id in twin.lost if any(message_id in held for held in others)]

    def _hand_over(self, twin: Twin, message_id: str, held: Held) -> None:
        twin.lost.pop(message_id, None)
        twin.held[message_id] = held

    def _compare(self, received: Received, image: Received) -> None:
        what = image.headers[ID]
        assert received.body == image.body, f"{what} has the body {received.body!r}"
        assert received.headers == image.headers, f"{what} has {received.headers}, the model {image.headers}"
        if self.subject.capabilities.delivery_count == "exact" and what not in self._uncounted:
            assert received.deliveries == image.deliveries, (
                f"delivery {received.deliveries} of {what}, the model counts {image.deliveries}"
            )

    def _is_complete(
        self, twin: Twin, got: Mapping[str, Received], offered: Mapping[str, Received], limit: int
    ) -> None:
        """What could be handed out must be, up to *limit*, and each key from its beginning."""
        if not self.address.keyed or twin.source.dead:
            assert len(got) == min(limit, len(offered)), f"got {list(got)} of {list(offered)}, at most {limit} asked"
            return
        lines, wanted = _by_key(got), _by_key(offered)
        for key, ids in lines.items():
            assert ids == wanted[key][: len(ids)], f"key {key!r} gave {ids}, its order is {wanted[key]}"
        busy = {h.image.key for t in self.twins if t.source == twin.source for h in t.held.values()}
        missing = [key for key in wanted if key not in lines and key not in busy]
        assert not missing or len(got) == limit, f"nothing of the keys {missing} came, only {list(got)}"

    def _why_not(self, twin: Twin, message_id: str) -> str:
        if message_id in self.acked[twin.source]:
            return f"{message_id} came again although it was acked"
        if any(message_id in t.held for t in self.twins if t.source == twin.source):
            return f"{message_id} came although somebody holds it"
        return f"{message_id} came although the model would not hand it out now (early, out of order, or unknown)"


def _by_key(messages: Mapping[str, Received]) -> dict[str | None, list[str]]:
    lines: dict[str | None, list[str]] = defaultdict(list)
    for message_id, received in messages.items():
        # Messages without a key are in no order with each other.
        lines[received.key if received.key is not None else message_id].append(message_id)
    return lines
