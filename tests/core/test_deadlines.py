"""Many deadlines share a timer, and none is forgotten."""

from __future__ import annotations

import asyncio

from msgbus._deadlines import Deadlines
from tests.core.support import eventually, run


class Expired(list[str]):
    """Notes what expired, and lets a test wait for it."""

    def __init__(self) -> None:
        self.deadlines: Deadlines[str] = Deadlines(self.append)

    async def reach(self, count: int) -> list[str]:
        await eventually(lambda: len(self) >= count)
        return self


def test_each_expires_once_and_the_shortest_first() -> None:
    async def body() -> None:
        expired = Expired()
        for name, after in (("late", 0.3), ("soon", 0.02), ("middle", 0.1)):
            expired.deadlines.add(name, after)
        assert await expired.reach(3) == ["soon", "middle", "late"]
        await asyncio.sleep(0.05)
        assert len(expired) == 3

    run(body())


def test_nothing_expires_before_its_time() -> None:
    async def body() -> None:
        expired, loop = Expired(), asyncio.get_running_loop()
        began = loop.time()
        for number in range(20):
            expired.deadlines.add(str(number), 0.05 + number / 1000)
        await expired.reach(20)
        assert loop.time() - began >= 0.05 + 19 / 1000 - 0.002

    run(body())


def test_what_is_discarded_never_expires() -> None:
    async def body() -> None:
        expired = Expired()
        expired.deadlines.add("gone", 0.01)
        expired.deadlines.add("here", 0.03)
        expired.deadlines.discard("gone")
        expired.deadlines.discard("unknown")
        assert await expired.reach(1) == ["here"]
        expired.deadlines.add("again", 0.01)
        assert await expired.reach(2) == ["here", "again"]

    run(body())


def test_an_expiry_may_add_and_discard_others() -> None:
    async def body() -> None:
        seen: list[str] = []

        def expire(name: str) -> None:
            seen.append(name)
            deadlines.discard("two")
            if name == "one":
                deadlines.add("three", 0.01)

        deadlines: Deadlines[str] = Deadlines(expire)
        deadlines.add("one", 0.0)
        deadlines.add("two", 0.0)
        await eventually(lambda: "three" in seen)
        assert seen == ["one", "three"]

    run(body())


def test_stopped_it_forgets_everything() -> None:
    async def body() -> None:
        expired = Expired()
        expired.deadlines.add("x", 0.01)
        expired.deadlines.stop()
        await asyncio.sleep(0.05)
        assert not expired

    run(body())
