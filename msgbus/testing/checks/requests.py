"""L. A request is answered to whom it came from: once, in time, or with an error that says why."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from msgbus import RequestReply, ScatterGather
from msgbus.errors import NoResponders, RemoteError, RequestTimeout
from msgbus.testing._check import check

if TYPE_CHECKING:
    from msgbus.testing.case import Case

UPPER = RequestReply("upper", str, str)


@check("L1", needs="requests")
async def a_request_is_answered(t: Case) -> None:
    """A request is answered by another process's handler, and the latency is reported."""
    server, client = t.bus(), t.bus()

    @server.on(UPPER)
    async def upper(text: str) -> str:
        return text.upper()

    async with server, client:
        await server.start()
        answer = await client.request(UPPER, "hello")
        started = time.perf_counter()
        for _ in range(20):
            await client.request(UPPER, "again")
        took = (time.perf_counter() - started) / 20

    assert answer == "HELLO"
    t.note(latency_ms=round(took * 1000, 2))


@check("L2", needs="requests")
async def a_hundred_at_once_get_their_own_answers(t: Case) -> None:
    """A hundred concurrent requests of two clients each get their own answer, whatever the order of answers."""
    server, one, two = t.bus(), t.bus(), t.bus()

    @server.on(UPPER, concurrency=32)
    async def upper(text: str) -> str:
        await asyncio.sleep(hash(text) % 10 / 1000)
        return text.upper()

    async with server, one, two:
        await server.start()
        texts = [f"text {n}" for n in range(100)]
        answers = await asyncio.gather(
            *((one if n % 2 else two).request(UPPER, text, timeout=30) for n, text in enumerate(texts))
        )

    assert answers == [text.upper() for text in texts]


@check("L3", needs="requests")
async def no_answer_is_a_timeout(t: Case) -> None:
    """A request that nobody answers raises by its timeout, and is not handled any later."""
    seen: list[str] = []
    server, client = t.bus(), t.bus()

    @server.on(UPPER)
    async def upper(text: str) -> str:
        seen.append(text)
        return text.upper()

    async with server, client:
        started = time.monotonic()
        await t.raises((RequestTimeout, NoResponders), client.request(UPPER, "anybody?", timeout=3 * t.tick))
        took = time.monotonic() - started
        await server.start()
        await t.pause(2)
        answer = await client.request(UPPER, "now")

    assert took <= 3 * t.tick + 5 * t.harness.patience
    assert (seen, answer) == (["now"], "NOW")


@check("L4", needs="requests")
async def a_late_answer_is_dropped(t: Case) -> None:
    """An answer that comes after the timeout is dropped: the next request gets its own answer."""
    gate = asyncio.Event()
    server, client = t.bus(), t.bus()

    @server.on(UPPER)
    async def upper(text: str) -> str:
        if text == "slow":
            await gate.wait()
        return text.upper()

    async with server, client:
        await server.start()
        await client.request(UPPER, "warm up")
        await t.raises(RequestTimeout, client.request(UPPER, "slow", timeout=2 * t.tick))
        gate.set()
        await t.pause(1)
        answers = [await client.request(UPPER, f"next {n}") for n in range(3)]

    assert answers == ["NEXT 0", "NEXT 1", "NEXT 2"]


@check("L5", needs="requests")
async def the_responders_error_reaches_the_caller(t: Case) -> None:
    """When the handler fails the caller is told at once, with the exception's type and text."""
    server, client = t.bus(), t.bus()

    @server.on(UPPER)
    async def upper(_: str) -> str:
        raise LookupError("no such letter")

    async with server, client:
        await server.start()
        error = await t.raises(RemoteError, client.request(UPPER, "x", timeout=20))

    assert (error.type, error.detail) == ("LookupError", "no such letter")


@check("L6", needs="requests")
async def another_responder_takes_over(t: Case) -> None:
    """When a responder stops in the middle of a request another one answers it."""
    started = asyncio.Event()
    first, second, client = t.bus(), t.bus(), t.bus()

    @first.on(UPPER)
    async def hang(_: str) -> str:
        started.set()
        await asyncio.sleep(1000)
        return "never"

    @second.on(UPPER)
    async def upper(text: str) -> str:
        return text.upper()

    async with first, second, client:
        await first.start()
        asking = asyncio.create_task(client.request(UPPER, "x", timeout=30 * t.harness.patience))
        await started.wait()
        await second.start()
        await first.drain(timeout=0)
        answer = await asking

    assert answer == "X"


@check("L7", needs="requests groups")
async def each_group_answers(t: Case) -> None:
    """A request to many is answered by every group once; one that fails answers with its error, a late one is left."""
    ask = ScatterGather("ask", str, str)
    server, client = t.bus(), t.bus()
    late = asyncio.Event()

    @server.on(ask, group="upper")
    async def upper(text: str) -> str:
        return text.upper()

    @server.on(ask, group="title")
    async def title(text: str) -> str:
        return text.title()

    @server.on(ask, group="broken")
    async def broken(_: str) -> str:
        raise LookupError("nothing here")

    @server.on(ask, group="late")
    async def wait(text: str) -> str:
        await late.wait()
        return text

    async with server, client:
        await server.start()
        answer = await client.gather(ask, "one two", timeout=3 * t.harness.patience)
        started = time.monotonic()
        quorum = await client.gather(ask, "one two", timeout=30 * t.harness.patience, quorum=2)
        took = time.monotonic() - started
        late.set()

    assert sorted(answer.replies) == ["ONE TWO", "One Two"]
    assert [(type(error), getattr(error, "type", "")) for error in answer.errors] == [(RemoteError, "LookupError")]
    assert sorted(quorum.replies) == ["ONE TWO", "One Two"]
    assert took < 20 * t.harness.patience
