"""M. What an adapter does not declare is refused by name when it is asked for, never approximated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgbus import Queue, RequestReply, Retry, Topic
from msgbus.errors import UnsupportedFeature
from msgbus.testing._check import check

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from msgbus.testing.case import Case

WORK = Queue("work", str)


async def refused(t: Case, feature: str, call: Awaitable[Any]) -> None:
    """Fail unless *call* raises `UnsupportedFeature` for this adapter and *feature*."""
    error = await t.raises(UnsupportedFeature, call)

    assert error.adapter == t.adapter.name
    assert feature in error.feature


async def _nothing(_: Any) -> None:
    pass


async def _echo(text: str) -> str:
    return text


@check("M30", needs="!max_delay")
async def delay_is_refused(t: Case) -> None:
    """Without ``max_delay`` a delayed publish, and a retry policy, are refused by name."""
    async with t.bus() as bus:
        await refused(t, "delay", bus.send(WORK, "x", delay=1))
    retrying = t.bus()
    retrying.on(WORK, retry=Retry(attempts=2))(_nothing)
    await refused(t, "max_delay", retrying.__aenter__())


@check("M31", needs="!groups")
async def groups_are_refused(t: Case) -> None:
    """Without ``groups`` a topic is refused by name."""
    async with t.bus() as bus:
        await refused(t, "groups", bus.publish(Topic("t", str), "x"))


@check("M32", needs="groups !patterns")
async def patterns_are_refused(t: Case) -> None:
    """Without ``patterns`` a subscription over a pattern is refused by name when the bus opens."""
    bus = t.bus()
    bus.on(Topic("t.*", str), group="g")(_nothing)
    await refused(t, "patterns", bus.__aenter__())


@check("M33", needs="!order=key")
async def order_by_key_is_refused(t: Case) -> None:
    """Without ``order=key`` a channel with a key is refused by name."""
    async with t.bus() as bus:
        await refused(t, "order=key", bus.send(Queue("keyed", str, key=str), "x"))


@check("M34", needs="order=key !park_keys")
async def parking_is_refused(t: Case) -> None:
    """Without ``park_keys`` the option to park is refused by name when the bus opens."""
    bus = t.bus()
    bus.on(Queue("keyed", str, key=str), park=True)(_nothing)
    await refused(t, "park_keys", bus.__aenter__())


@check("M35", needs="!replay")
async def replay_is_refused(t: Case) -> None:
    """Without ``replay`` a beginning in the past is refused by name when the bus opens."""
    bus = t.bus()
    bus.on(WORK, start="earliest")(_nothing)
    await refused(t, "replay", bus.__aenter__())


@check("M36", needs="!browse")
async def browsing_is_refused(t: Case) -> None:
    """Without ``browse`` browsing is refused by name."""
    source = await t.queue()
    await refused(t, "browse", t.adapter.browse(source, limit=1))


@check("M37", needs="!requests")
async def requests_are_refused(t: Case) -> None:
    """Without ``requests`` asking and answering are refused by name."""
    channel = RequestReply("ask", str, str)
    async with t.bus() as bus:
        await refused(t, "requests", bus.request(channel, "x"))
    answering = t.bus()
    answering.on(channel)(_echo)
    await refused(t, "requests", answering.__aenter__())


@check("M38", needs="!remove")
async def removing_is_refused(t: Case) -> None:
    """Without ``remove`` removing a source is refused by name."""
    await refused(t, "remove", t.adapter.remove(await t.queue()))
