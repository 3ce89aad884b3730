"""The short cuts past batches and buffers: what an adapter posts, and what it delivers the moment it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from msgbus import Bus, Queue
from msgbus._publisher import Publisher
from msgbus._time import SystemClock
from msgbus.adapter import Outgoing, Received, Source, SubscribeOptions
from msgbus.errors import ConfirmLost, NotSent, PublishError, PublishRejected, PublishTimeout
from msgbus_memory._adapter import MemoryAdapter
from tests.core.support import eventually, run
from tests.core.test_publish import Scripted, outgoing

Done = Callable[[PublishError | None], None]


class Again(ConfirmLost):
    retryable = True


class Posting(Scripted):
    """Takes one message at a time as long as it is told to; says what became of each when the test does."""

    def __init__(self, *, takes: int = 100) -> None:
        super().__init__([])
        self.takes = takes
        self.posted: list[tuple[str, Done]] = []

    def post(self, outgoing: Outgoing, done: Done) -> bool:
        if len(self.posted) >= self.takes:
            return False
        self.posted.append((outgoing.id, done))
        return True


def make(adapter: Posting, timeout: float = 5.0) -> Publisher:
    return Publisher(adapter, timeout=timeout, clock=SystemClock(), max_body=1000)


def test_what_is_posted_is_confirmed_by_itself() -> None:
    """Each future ends with what the adapter said of its message, in whatever order."""

    async def main() -> tuple[list[Any], list[list[str]]]:
        adapter = Posting()
        publisher = make(adapter)
        futures = [publisher.submit(outgoing(i)) for i in "123"]
        for number, error in ((2, None), (0, PublishRejected("full")), (1, None)):
            adapter.posted[number][1](error)
        return await asyncio.gather(*futures, return_exceptions=True), adapter.batches

    (first, second, third), batches = run(main())

    assert isinstance(first, PublishRejected)
    assert (second, third, batches) == (None, None, [])


def test_what_is_not_taken_is_published_and_not_overtaken() -> None:
    """A message the adapter does not post goes the usual way, and later ones stay behind it."""

    async def main() -> tuple[list[str], list[list[str]]]:
        adapter = Posting(takes=1)
        publisher = make(adapter)
        futures = [publisher.submit(outgoing(i)) for i in "12"]
        adapter.takes = 100  # there is room again, but 2 has not left yet
        futures.append(publisher.submit(outgoing("3")))
        adapter.posted[0][1](None)
        await asyncio.gather(*futures)
        return [i for i, _ in adapter.posted], adapter.batches

    assert run(main()) == (["1"], [["2", "3"]])


def test_a_lost_post_is_published_again() -> None:
    """An error that can be retried is retried with the same id, by the usual way."""

    async def main() -> list[list[str]]:
        adapter = Posting()
        publisher = make(adapter)
        future = publisher.submit(outgoing("1"))
        adapter.posted[0][1](Again("cut"))
        await future
        return adapter.batches

    assert run(main()) == [["1"]]


def test_a_lost_post_may_have_been_sent() -> None:
    """If the broker stays away after a post whose confirm was lost, nobody claims that the message was not sent."""

    async def main() -> tuple[Any, Any]:
        adapter = Posting()
        adapter.script = ["hang"]
        publisher = make(adapter, timeout=0.05)
        future = publisher.submit(outgoing("1"))
        adapter.posted[0][1](Again("cut"))
        first = (await asyncio.gather(future, return_exceptions=True))[0]
        return first, publisher

    assert isinstance(run(main())[0], PublishTimeout)


def test_a_post_that_is_never_confirmed_times_out() -> None:
    """After the publish timeout the caller is told, and a late confirmation changes nothing."""

    async def main() -> tuple[list[Any], bool]:
        adapter = Posting()
        publisher = make(adapter, timeout=0.05)
        futures = [publisher.submit(outgoing(i)) for i in "12"]
        errors = await asyncio.gather(*futures, return_exceptions=True)
        for _, done in adapter.posted:
            done(None)
            done(Again("cut"))
        await publisher.aclose()
        return errors, bool(adapter.batches)

    errors, published = run(main())

    assert [type(error) for error in errors] == [PublishTimeout, PublishTimeout]
    assert not published


def test_closing_waits_for_what_is_posted() -> None:
    """A publisher is closed once the adapter has said what became of each post."""

    async def main() -> list[bool]:
        adapter = Posting()
        publisher = make(adapter)
        future = publisher.submit(outgoing("1"))
        closing = asyncio.create_task(publisher.aclose())
        await asyncio.sleep(0.01)
        before = closing.done()
        adapter.posted[0][1](None)
        await closing
        return [before, future.done()]

    assert run(main()) == [False, True]


def test_a_refused_post_is_not_sent() -> None:
    """An error that cannot be retried ends the message."""

    async def main() -> Any:
        adapter = Posting()
        future = make(adapter).submit(outgoing("1"))
        adapter.posted[0][1](NotSent("no"))
        return (await asyncio.gather(future, return_exceptions=True))[0]

    assert type(run(main())) is NotSent


jobs = Queue("post.jobs", str)


def test_a_delivered_message_is_handled_at_once_and_within_prefetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle workers take what is delivered; what finds none, or no room, is left to `receive`; a drain takes nothing."""

    async def main() -> tuple[list[bool], list[bool], bool, list[str]]:
        seen: list[str] = []
        gate = asyncio.Event()
        subscriptions: list[Any] = []
        subscribe = MemoryAdapter.subscribe

        async def noting(self: MemoryAdapter, source: Source, options: SubscribeOptions) -> Any:
            subscription = await subscribe(self, source, options)
            subscriptions.append(subscription)
            return subscription

        monkeypatch.setattr(MemoryAdapter, "subscribe", noting)
        bus = Bus("memory://")

        @bus.on(jobs, concurrency=2, prefetch=2)
        async def handle(text: str) -> None:
            seen.append(text)
            await gate.wait()

        async with bus:
            await bus.start()
            (subscription,) = subscriptions
            settled: list[Sequence[Any]] = []

            async def settle(outcomes: Sequence[Any]) -> list[None]:
                settled.append(outcomes)
                return [None] * len(outcomes)

            monkeypatch.setattr(subscription, "settle", settle)
            await asyncio.sleep(0)  # the workers wait now
            deliver = subscription.deliver
            first = [deliver(_received("1")), deliver(_received("2"))]  # the second finds the first not yet begun
            await eventually(lambda: seen == ["1"])
            then = [deliver(_received("3")), deliver(_received("4"))]
            await eventually(lambda: seen == ["1", "3"])
            gate.set()
            await eventually(lambda: sum(map(len, settled)) == 2)
            await bus.drain()
            return first, then, deliver(_received("5")), seen

    first, then, late, seen = run(main())

    assert (first, then, late, seen) == ([True, False], [True, False], False, ["1", "3"])


def _received(text: str) -> Received:
    return Received(text.encode(), {"ce-type": "str", "ce-id": text}, 1, "post.jobs")
