"""Memory adapters and stores that each break one promise, in the way real ones have."""

# ruff: noqa: D106 - the outer class's docstring is the inner one's

from __future__ import annotations

import asyncio
from dataclasses import replace

from msgbus.adapter import (
    Ack,
    Address,
    DeadLetter,
    Kind,
    Nack,
    Provision,
    Source,
    SubscribeOptions,
    Subscription,
    Topology,
)
from msgbus.errors import LeaseLost
from msgbus.store import Granted
from msgbus_memory import MemoryAdapter, MemoryStore


class Wrapped(Subscription):
    """A subscription that passes everything on; the broken ones change one thing."""

    def __init__(self, adapter, inner, source, options):
        self.adapter, self.inner, self.source, self.options = adapter, inner, source, options
        self.address = inner.address

    async def receive(self, limit, wait):
        return await self.inner.receive(limit, wait)

    async def settle(self, outcomes):
        return await self.inner.settle([self.change(outcome) for outcome in outcomes])

    def change(self, outcome):
        return outcome

    async def extend(self, received, seconds):
        return await self.inner.extend(received, seconds)

    async def aclose(self):
        await self.inner.aclose()


class Broken(MemoryAdapter):
    """Makes subscriptions of the class's own kind."""

    name = "broken"
    Wrapper = Wrapped

    async def subscribe(self, source, options):
        return self.Wrapper(self, await super().subscribe(source, options), source, options)


class ConfirmsWithoutStoring(Broken):
    async def publish(self, batch):
        return await super().publish(batch[:-1]) + [None] if len(batch) > 1 else await super().publish(batch)


class StoresTwice(Broken):
    async def publish(self, batch):
        await super().publish(batch[:1])
        return await super().publish(batch)


class DropsHeaders(Broken):
    async def publish(self, batch):
        return await super().publish(
            [replace(m, headers={k: v for k, v in m.headers.items() if len(v) < 30}) for m in batch]
        )


class LeaksHeaders(Broken):
    async def publish(self, batch):
        return await super().publish([replace(m, headers=m.headers | {"x-broker": "1"}) for m in batch])


class WrapsBodies(Broken):
    async def publish(self, batch):
        return await super().publish([replace(m, body=m.body.decode(errors="replace").encode()) for m in batch])


class TakesAnySize(Broken):
    capabilities = replace(MemoryAdapter.capabilities, max_body=1024)


class FailsWholeBatches(Broken):
    async def publish(self, batch):
        results = await super().publish(batch)
        return [next((e for e in results if e), None)] * len(batch)


class CreatesOnPublish(Broken):
    async def publish(self, batch):
        addresses = tuple({m.target for m in batch if isinstance(m.target, Address) and m.target.kind is Kind.QUEUE})
        self._broker.declare(Topology(addresses), Provision.CREATE)
        return await super().publish(batch)


class WorksAfterClose(Broken):
    def _check_open(self):
        pass


class LosesSecondNack(Broken):
    class Wrapper(Wrapped):
        def change(self, outcome):
            again = isinstance(outcome, Nack) and outcome.received.deliveries >= 2
            return Ack(outcome.received) if again else outcome


class NacksWholeBatch(Broken):
    class Wrapper(Wrapped):
        async def settle(self, outcomes):
            nacked = any(isinstance(outcome, Nack) for outcome in outcomes)
            return await self.inner.settle([Nack(o.received) for o in outcomes] if nacked else outcomes)


class IsEarly(Broken):
    class Wrapper(Wrapped):
        def change(self, outcome):
            return replace(outcome, delay=outcome.delay / 2) if isinstance(outcome, Nack) else outcome


class PublishesEarly(Broken):
    async def publish(self, batch):
        return await super().publish([replace(m, delay=m.delay / 2) for m in batch])


class BlocksBehindDelays(Broken):
    class Wrapper(Wrapped):
        async def settle(self, outcomes):
            await asyncio.sleep(max((o.delay for o in outcomes if isinstance(o, Nack)), default=0))
            return await self.inner.settle([Nack(o.received) if isinstance(o, Nack) else o for o in outcomes])


class CountsReleases(Broken):
    class Wrapper(Wrapped):
        def change(self, outcome):
            return replace(outcome, counted=True) if isinstance(outcome, Nack) else outcome


class LosesAtClose(Broken):
    class Wrapper(Wrapped):
        async def receive(self, limit, wait):
            got = await super().receive(limit, wait)
            self.held = [*getattr(self, "held", ()), *got]
            return got

        async def aclose(self):
            await self.inner.settle([Ack(message) for message in getattr(self, "held", ())])
            await self.inner.aclose()


class LosesOnCancel(Broken):
    class Wrapper(Wrapped):
        async def receive(self, limit, wait):
            got = await self.inner.receive(limit, wait)
            await asyncio.sleep(0)
            return got


class IgnoresPrefetch(Broken):
    async def subscribe(self, source, options):
        return await super().subscribe(source, SubscribeOptions(prefetch=10_000, lease=options.lease))


class LateAckCounts(Broken):
    """Acks by message, not by who holds it."""

    class Wrapper(Wrapped):
        async def settle(self, outcomes):
            results = await self.inner.settle(outcomes)
            for number, outcome in enumerate(outcomes):
                entry = outcome.received.receipt
                if isinstance(results[number], LeaseLost) and isinstance(outcome, Ack) and entry.consumer:
                    entry.consumer.box.release(entry)
                    results[number] = None
            return results


class LateNackCopies(Broken):
    """Publishes the copy for the next attempt before it looks whether the message is still its own."""

    class Wrapper(Wrapped):
        async def settle(self, outcomes):
            results = await self.inner.settle(outcomes)
            for outcome, error in zip(outcomes, results, strict=True):
                if isinstance(outcome, Nack) and error is not None:
                    await self.adapter.publish([copy_of(outcome.received, self.source)])
            return results


def copy_of(received, source):
    from msgbus.adapter import ID, Outgoing

    return Outgoing(source, received.body, dict(received.headers), received.headers.get(ID, ""), received.key)


class ForgetsToExtend(Broken):
    class Wrapper(Wrapped):
        async def extend(self, received, seconds):
            return [None] * len(received)


class ReordersKeys(Broken):
    class Wrapper(Wrapped):
        async def receive(self, limit, wait):
            return list(reversed(await self.inner.receive(limit, wait)))


class SharesKeys(Broken):
    """Treats keyed queues like any other."""

    async def declare(self, topology):
        await super().declare(
            Topology(
                tuple(replace(a, keyed=False) for a in topology.addresses),
                tuple(replace(s, address=replace(s.address, keyed=False)) for s in topology.sources),
            )
        )


class DoesNotPark(Broken):
    class Wrapper(Wrapped):
        def change(self, outcome):
            return replace(outcome, park=False) if isinstance(outcome, DeadLetter) else outcome


class LosesDeadLetters(Broken):
    class Wrapper(Wrapped):
        def change(self, outcome):
            return Ack(outcome.received) if isinstance(outcome, DeadLetter) else outcome


class StripsDeadLetters(Broken):
    class Wrapper(Wrapped):
        def change(self, outcome):
            if isinstance(outcome, DeadLetter):
                return replace(outcome, headers={k: v for k, v in outcome.headers.items() if k.startswith("msgbus-")})
            return outcome


class ReplaysToAll(Broken):
    async def publish(self, batch):
        everybody = [replace(m, target=m.target.address if isinstance(m.target, Source) else m.target) for m in batch]
        return await super().publish(everybody)


class RetriesToAll(Broken):
    """Retries by publishing to the topic again, as naive adapters do."""

    class Wrapper(Wrapped):
        async def settle(self, outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Nack) and outcome.counted:
                    await self.adapter.publish([copy_of(outcome.received, self.source.address)])
            return await self.inner.settle([Ack(o.received) if isinstance(o, Nack) else o for o in outcomes])


class CutsNames(Broken):
    async def declare(self, topology):
        await super().declare(
            Topology(
                tuple(replace(a, name=a.name.lower()) for a in topology.addresses),
                tuple(replace(s, address=replace(s.address, name=s.address.name.lower())) for s in topology.sources),
            )
        )

    async def publish(self, batch):
        return await super().publish([replace(m, target=self._lower(m.target)) for m in batch])

    async def subscribe(self, source, options):
        return await super().subscribe(self._lower(source), options)

    def _lower(self, target):
        if isinstance(target, Source):
            return replace(target, address=self._lower(target.address))
        return replace(target, name=target.name.lower())


class CreatesOnVerify(Broken):
    async def declare(self, topology):
        self._broker.declare(topology, Provision.CREATE)


class IgnoresDifferences(Broken):
    async def declare(self, topology):
        self._broker._addresses.clear()
        await super().declare(topology)


class CannotWake(Broken):
    """Polls every second instead of waiting."""

    class Wrapper(Wrapped):
        async def receive(self, limit, wait):
            if got := await self.inner.receive(limit, 0):
                return got
            await asyncio.sleep(wait)
            return []


class LeavesATask(Broken):
    async def open(self):
        await super().open()
        self._forgotten = asyncio.create_task(asyncio.sleep(3600))


class BeginsTasks(Broken):
    """Not broken: it only has another task at every moment, as long as it is open."""

    async def open(self):
        await super().open()
        self._turning = asyncio.create_task(self._turn())

    async def _turn(self):
        while True:
            other = asyncio.create_task(asyncio.sleep(3600))
            try:
                await asyncio.sleep(0)
            finally:
                other.cancel()

    async def aclose(self):
        self._turning.cancel()
        await super().aclose()


class BrowsesUndeclared(Broken):
    capabilities = replace(MemoryAdapter.capabilities, browse=False)


class ForgetsDelayedAtClose(Broken):
    """A rare one: a delayed nack is lost when its consumer leaves before the delay is over."""

    class Wrapper(Wrapped):
        async def aclose(self):
            box = self.inner._consumer.box
            box._delayed[:] = [item for item in box._delayed if not item[2].returned]
            await self.inner.aclose()


class ClaimMarksDone(MemoryStore):
    async def release(self, claims):
        pass


class LateCompletionWins(MemoryStore):
    async def complete(self, completions):
        for completion in completions:
            record = self._records._table.get((completion.claim.scope, completion.claim.key))
            if record is not None:
                record.owner = completion.claim.owner
        return await super().complete(completions)


class AnybodyReleases(MemoryStore):
    async def release(self, claims):
        for claim in claims:
            self._records._table.pop((claim.scope, claim.key), None)


class NoFingerprint(MemoryStore):
    async def claim(self, claims):
        return await super().claim([replace(claim, fingerprint="") for claim in claims])


class LeasesNeverEnd(MemoryStore):
    async def claim(self, claims):
        return await super().claim([replace(claim, lease=1e9) for claim in claims])


class ForgetsReplies(MemoryStore):
    async def complete(self, completions):
        return await super().complete([replace(c, reply=c.reply or None) for c in completions])


class JoinsScopes(MemoryStore):
    async def claim(self, claims):
        return await super().claim([replace(c, scope="", key=c.scope + c.key) for c in claims])


class RacesItself(MemoryStore):
    async def claim(self, claims):
        free = [(c.scope, c.key) not in self._records._table for c in claims]
        await asyncio.sleep(0)
        verdicts = await super().claim(claims)
        return [Granted() if was_free else v for was_free, v in zip(free, verdicts, strict=True)]


class PurgesEverything(MemoryStore):
    async def purge(self, limit):
        self._records._table.clear()
        return 0


class NoTakeoverOfOwn(MemoryStore):
    async def complete(self, completions):
        now = self.config.clock.now()
        table = self._records._table
        for c in completions:
            record = table.get((c.claim.scope, c.claim.key))
            if record is not None and record.expires <= now:
                record.owner = "nobody"
        return await super().complete(completions)
