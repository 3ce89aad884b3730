"""A. A message keeps everything it carries: headers, id, type, key, correlation, time, delay."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

from msgbus import Delivery, Message, Queue
from msgbus.errors import EncodeError, UnsupportedFeature
from msgbus.testing._check import Skipped, check
from msgbus.testing.tap import bodies

if TYPE_CHECKING:
    from msgbus.testing.case import Case

AWKWARD = (
    "~!@#$%^&*()_+`-=[]\\{}|;':\",/.<>?",
    "foo/bar",
    "/foo/",
    "foo..bar",
    "../../etc/passwd",
    "back\\slash",
    "'single' \"double\" `back`",
    " leading and trailing spaces ",
    "",
    "1leading-digit",
    "tab\there",
    "line\r\nbreak: injected",
    "null\x00byte",
    "\x7f\x1b[31m",
    "ünïcödé",
    "日本語 العربية",
    "emoji 😀",
    "half \ud800 pair",
)


@check("A20")
async def headers_arrive_as_they_were(t: Case) -> None:
    """All headers arrive, with their values unchanged, and no others: nothing is lost, nothing leaks in."""
    source = await t.queue()
    (sent,) = await t.send(source.address, b"x", headers={"plain": "value", "X-Mixed.Case_1": "ünï \"q\" 'q' =;,"})
    published = dict(sent.headers)
    tap = await t.tap(source)
    (received,) = await tap.drain(1)

    assert received.headers == published


@check("A21")
async def many_and_long_headers_arrive(t: Case) -> None:
    """Fifty headers and one of four thousand characters (a trimmed traceback) arrive."""
    source = await t.queue()
    headers = {f"h{n}": f"value {n}" for n in range(50)} | {"long": "é" * 2_000}
    (sent,) = await t.send(source.address, b"x", headers=headers)
    tap = await t.tap(source)
    (received,) = await tap.drain(1)

    assert received.headers == sent.headers


@check("A22")
async def awkward_header_values_are_kept_or_refused(t: Case) -> None:
    """A header value with quotes, breaks, controls or any Unicode arrives unchanged or is refused by its name."""
    await _kept_or_refused(t, [{"awkward": text} for text in AWKWARD], named="awkward")


@check("A23")
async def awkward_header_names_are_kept_or_refused(t: Case) -> None:
    """A header name with slashes, spaces, controls or any Unicode arrives unchanged or is refused by name."""
    await _kept_or_refused(t, [{text: "value"} for text in AWKWARD], named=None)


async def _kept_or_refused(t: Case, candidates: list[dict[str, str]], *, named: str | None) -> None:
    queue = Queue("awkward", str)
    seen: dict[str, dict[str, str]] = {}
    bus = t.bus()

    @bus.on(queue)
    async def handle(payload: str, message: Message) -> None:
        seen[payload] = dict(message.headers)

    accepted: dict[str, dict[str, str]] = {}
    async with bus:
        await bus.start()
        for number, headers in enumerate(candidates):
            refused = None
            try:
                await bus.send(queue, str(number), headers=headers)
                accepted[str(number)] = headers
            except EncodeError as exc:
                refused = str(exc)
            assert refused is None or repr(named or next(iter(headers))) in refused, f"not named: {refused}"
        await t.eventually(lambda: len(seen) >= len(accepted), what="all accepted messages arrived")

    assert seen == accepted
    t.note(refused=len(candidates) - len(accepted))


@check("A24")
async def what_identifies_a_message_survives(t: Case) -> None:
    """Id, type, source, time, content type, key, correlation, causation and expiry are what they were published as."""
    queue = Queue("identity", dict, key=_key if t.capabilities.order == "key" else None)
    seen: list[Message] = []
    bus = t.bus(service="kit-service")

    @bus.on(queue)
    async def handle(_: dict[str, Any], delivery: Delivery[Any]) -> None:
        seen.append(delivery.message)

    before = time.time()
    async with bus:
        await bus.start()
        await bus.send(queue, {"a": 1}, id="id-1", key="key é", correlation_id="corr-1", expires=3600)
        await t.eventually(lambda: seen)
        await bus.send(queue, {"a": 2}, cause=seen[0])
        await t.eventually(lambda: len(seen) == 2)
    first, second = seen

    assert (first.id, first.type, first.source, first.key) == ("id-1", "identity", "kit-service", "key é")
    assert (first.content_type, first.correlation_id, first.body) == ("application/json", "corr-1", b'{"a":1}')
    assert first.time is not None
    assert before - 1 <= first.time.timestamp() <= time.time() + 1
    assert first.expires is not None
    assert before + 3590 <= first.expires.timestamp() <= before + 3700
    assert (second.causation_id, second.correlation_id) == ("id-1", "corr-1")


def _key(_: Any) -> str:
    return "k"


@check("A25")
async def the_adapter_tells_channel_and_time(t: Case) -> None:
    """A received message names the channel it was published to, and when it was stored (if the broker knows)."""
    source = await t.queue()
    before = time.time()
    await t.send(source.address, b"x")
    tap = await t.tap(source)
    (received,) = await tap.drain(1)

    assert received.channel == source.address.name
    assert received.time is None or before - 5 <= received.time <= time.time() + 5


@check("A26", needs="order=key")
async def the_key_survives(t: Case) -> None:
    """The ordering key of a message on a keyed channel arrives."""
    source = await t.queue(keyed=True)
    await t.send(source.address, b"x", key="customer 7/é")
    await t.send(source.address, b"y")
    tap = await t.tap(source)
    received = {message.body: message for message in await tap.drain(2)}

    keyed = received[b"x"]
    assert (keyed.key or keyed.headers.get("ce-partitionkey")) == "customer 7/é"
    assert received[b"y"].key is None


@check("A27", needs="max_delay")
async def a_delayed_message_is_never_early(t: Case) -> None:
    """A message published with a delay is not seen before it is over; others are not held up by it."""
    source = await t.queue()
    delay = 3 * t.tick
    tap = await t.tap(source)
    before = time.time()
    await t.send(source.address, b"later", delay=delay)
    await t.send(source.address, b"now")

    assert bodies(await tap.drain(1)) == [b"now"]
    (received,) = await tap.drain(1)
    took = time.time() - before
    assert received.body == b"later"
    assert took >= delay, f"came {delay - took:.3f} s early"
    t.note(lateness_ms=round((took - delay) * 1000))


@check("A28", needs="max_delay")
async def a_longer_delay_than_declared_is_refused(t: Case) -> None:
    """A delay over the declared maximum is refused by name, and nothing is published."""
    if math.isinf(t.capabilities.max_delay):
        raise Skipped("max_delay is unlimited")
    queue = Queue("delayed", str)
    async with t.bus() as bus:
        error = await t.raises(UnsupportedFeature, bus.send(queue, "never", delay=t.capabilities.max_delay + 1))
        stats = await bus.stats(queue)

    assert error.adapter == t.adapter.name
    assert "delay" in error.feature
    assert stats.delayed in (0, None)


@check("A29", needs="dedupe_window")
async def a_second_publish_of_an_id_is_dropped(t: Case) -> None:
    """Within the declared window a second message with the same id is confirmed and dropped."""
    source = await t.queue()
    message = t.message(source.address, b"once", id="same-id")
    await t.publish([message])
    await t.publish([message])
    tap = await t.tap(source)

    assert bodies(await tap.take_all()) == [b"once"]


@check("A30")
async def changing_a_received_message_changes_nothing_else(t: Case) -> None:
    """Headers of a received message are the consumer's own: changing them affects no redelivery and no other copy."""
    source = await t.queue()
    headers = {"mine": "original"}
    (sent,) = await t.send(source.address, b"x", headers=headers)
    published = dict(sent.headers)
    sent.headers["mine"] = "changed by the publisher"
    tap = await t.tap(source)
    (received,) = await tap.take()
    original = dict(received.headers)
    received.headers["mine"] = "changed by the consumer"
    await tap.aclose()
    tap = await t.tap(source)
    (again,) = await tap.take()

    assert original == published
    assert {k: v for k, v in again.headers.items() if k in published} == published


@check("A31", needs="hook:inject_raw")
async def a_foreign_message_arrives(t: Case) -> None:
    """A message of a foreign producer, without any of our headers, is received and handled like any other."""
    queue = Queue("foreign", bytes)
    seen: list[tuple[bytes, dict[str, str]]] = []
    bus = t.bus()

    @bus.on(queue)
    async def handle(payload: bytes, message: Message) -> None:
        seen.append((payload, dict(message.headers)))

    async with bus:
        await bus.start()
        await t.harness.inject_raw(queue.address(t.prefix), b"\x00raw", {"theirs": "yes"})
        await t.eventually(lambda: seen)

    assert seen == [(b"\x00raw", {"theirs": "yes"})]


@check("A32")
async def publishers_may_publish_at_once(t: Case) -> None:
    """Fifty publishes at the same time on one adapter are each confirmed and arrive."""
    source = await t.queue()
    await asyncio.gather(*(t.send(source.address, b"%d" % number) for number in range(50)))
    tap = await t.tap(source)

    assert sorted(bodies(await tap.drain(50))) == sorted(b"%d" % number for number in range(50))
