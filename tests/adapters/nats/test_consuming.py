"""Receiving and settling."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime

import pytest

from msgbus.adapter import DEAD, Ack, DeadLetter, Nack, Source
from msgbus.errors import BrokerUnavailable, ClosedError, LeaseLost, SettleError, UnsupportedFeature


@pytest.fixture(params=["", "&double_ack=true"], ids=["ack", "double-ack"])
def query(request):
    return request.param


def test_outcomes_in_any_order_reach_their_own_message(kit, query):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source, query=query) as adapter:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, *(kit.message(queue, f"m{i}") for i in range(10)))
            got = await kit.receive(subscription, 10)
            outcomes = [Nack(m) if m.body in (b"m3", b"m7") else Ack(m) for m in reversed(got)]
            assert list(await subscription.settle(outcomes)) == [None] * 10
            again = await kit.receive(subscription, 2)
            assert sorted(kit.texts(again)) == ["m3", "m7"]
            assert [m.deliveries for m in again] == [2, 2]
            await kit.ack(subscription, again)
            assert (await adapter.stats(source)).in_flight == 0

    kit.run(body())


def test_settling_twice_is_refused(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, kit.message(queue, "x"))
            (message,) = await kit.receive(subscription, 1)
            await kit.ack(subscription, [message])
            (error,) = await subscription.settle([Nack(message)])
            assert isinstance(error, LeaseLost)
            assert await subscription.receive(1, 0.3) == []

    kit.run(body())


@pytest.mark.parametrize("late", [Ack, Nack], ids=["ack", "nack"])
def test_a_late_settle_does_not_disturb_the_new_owner(kit, late):
    """The server would take it: an acknowledgement of an older delivery settles the message all the same."""

    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as slow, kit.adapter() as quick:
            await kit.publish(slow, kit.message(queue, "x"))
            first = await kit.consumer(slow, source, lease=3.0, prefetch=1)
            (lost,) = await kit.receive(first, 1)
            second = await kit.consumer(quick, source, lease=3.0)
            (owned,) = await kit.receive(second, 1)
            assert owned.deliveries == 2
            (error,) = await first.settle([late(lost)])
            assert isinstance(error, LeaseLost)
            assert (await quick.stats(source)).in_flight == 1
            await kit.ack(second, [owned])

    kit.run(body())


def test_extending_keeps_a_message(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source, lease=3.0)
            await kit.publish(adapter, kit.message(queue, "x"), kit.message(queue, "dropped"))
            kept, dropped = await kit.receive(subscription, 2)
            for _ in range(8):
                await asyncio.sleep(0.5)
                assert await subscription.extend([kept], 3.0) == [None]
            (error,) = await subscription.extend([dropped], 3.0)
            assert isinstance(error, LeaseLost)
            await kit.ack(subscription, [kept])

    kit.run(body())


def test_messages_nobody_has_taken_yet_are_renewed(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source, lease=3.0)
            await kit.publish(adapter, kit.message(queue, "one"), kit.message(queue, "two"))
            (one,) = await kit.receive(subscription, 1)
            await kit.ack(subscription, [one])
            await asyncio.sleep(4.0)
            (two,) = await kit.receive(subscription, 1)
            assert two.deliveries == 1
            await kit.ack(subscription, [two])

    kit.run(body())


def test_never_more_than_prefetch_is_held(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source, prefetch=7)
            await kit.publish(adapter, *(kit.message(queue, f"m{i}") for i in range(100)))
            seen = 0
            while seen < 100:
                got = await subscription.receive(5, 1)
                assert (await adapter.stats(source)).in_flight <= 7
                seen += len(got)
                await kit.ack(subscription, got)

    kit.run(body())


def test_a_cancelled_receive_loses_nothing(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source)
            seen = []
            for i in range(50):
                receiving = asyncio.create_task(subscription.receive(9, 5))
                await asyncio.sleep(0)
                await kit.publish(adapter, kit.message(queue, f"m{i}"))
                receiving.cancel()
                try:
                    seen += await receiving
                except asyncio.CancelledError:
                    pass
            seen += await kit.receive(subscription, 50 - len(seen))
            assert sorted(kit.texts(seen)) == sorted(f"m{i}" for i in range(50))
            assert {m.deliveries for m in seen} == {1}

    kit.run(body())


def test_closing_gives_everything_back_at_once(kit):
    """Also what is on its way to the subscription that closes."""

    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            await kit.publish(adapter, *(kit.message(queue, f"m{i}") for i in range(400)))
            loop = asyncio.get_running_loop()
            began = loop.time()
            seen = set()
            while len(seen) < 400:
                subscription = await kit.consumer(adapter, source, prefetch=50)
                got = await subscription.receive(20, 1)
                await kit.ack(subscription, got[:10])
                seen |= set(kit.texts(got[:10]))
                await subscription.aclose()
                assert loop.time() - began < 25  # never a lease's 30 seconds

    kit.run(body())


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_messages_that_nobody_asks_for_go_to_others(kit, keyed):
    async def body():
        queue = kit.queue(keyed=keyed)
        source = Source(queue)
        async with kit.adapter(queue, source) as paused, kit.adapter() as busy:
            await kit.publish(paused, *(kit.message(queue, f"m{i}", "k") for i in range(6)))
            hoarder = await kit.consumer(paused, source, lease=3.0)
            kept = await kit.receive(hoarder, 1)
            await kit.ack(hoarder, kept)
            other = await kit.consumer(busy, source, lease=3.0)
            got = await kit.receive(other, 5)
            assert kit.texts(kept + got) == [f"m{i}" for i in range(6)]
            await kit.ack(other, got)
            await kit.publish(busy, kit.message(queue, "later", "k"))
            await other.aclose()
            await kit.ack(hoarder, await kit.receive(hoarder, 1))

    kit.run(body())


def test_what_comes_back_untried_goes_before_what_is_ready(kit):
    async def body():
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with kit.adapter(queue, source, query="&partitions=1") as adapter:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, *(kit.message(queue, f"m{i}", "k") for i in range(4)))
            (first,) = await kit.receive(subscription, 1)
            await kit.until(lambda: len(subscription._buffer) == 3)
            assert await subscription.settle([Nack(first, counted=False)]) == [None]
            again = await kit.receive(subscription, 4)
            assert kit.texts(again) == ["m0", "m1", "m2", "m3"]
            await kit.ack(subscription, again)

    kit.run(body())


def test_what_is_given_back_one_by_one_comes_back_in_order(kit):
    """The later one first: it waits for the earlier one, which may be given back as well."""

    async def body():
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            await kit.publish(adapter, kit.message(queue, "m0", "k"), kit.message(queue, "m1", "k"))
            subscription = await kit.consumer(adapter, source)
            first, second = await kit.receive(subscription, 2)
            assert await subscription.settle([Nack(second, counted=False)]) == [None]
            assert await subscription.receive(2, 0.2) == []
            assert await subscription.settle([Nack(first, counted=False)]) == [None]
            again = await kit.receive(subscription, 2)
            assert kit.texts(again) == ["m0", "m1"]

            await subscription.settle([Nack(again[1], counted=False)])
            await kit.ack(subscription, again[:1])
            assert kit.texts(await kit.receive(subscription, 1)) == ["m1"]

    kit.run(body())


def test_a_new_owner_waits_although_messages_come_while_it_looks(kit, monkeypatch):
    """One that came after the server counted is not among the counted: the former owner's is."""

    async def body():
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with kit.adapter(queue, source) as first, kit.adapter() as second:
            former = await kit.consumer(first, source)
            await kit.publish(first, kit.message(queue, "m0", "k"))
            held = await kit.receive(former, 1)
            owner = await kit.consumer(second, source)
            look, looks = owner._tools.provisioner.info, 0

            async def look_slowly(work):
                nonlocal looks
                found = await look(work)
                if work is held_in.work and found["num_ack_pending"] > 1:
                    looks += 1
                    if looks == 1:
                        await kit.publish(first, kit.message(queue, "m2", "k"))
                        await kit.until(lambda: len(owner._held) == 2)
                return found

            monkeypatch.setattr(owner._tools.provisioner, "info", look_slowly)
            held_in = next(pull for pull in owner._pulls if pull.work.name == held[0].receipt.pull.work.name)
            receiving = asyncio.create_task(kit.receive(owner, 2))
            await former._try_to_release(held[0].receipt.pull)
            await kit.publish(first, kit.message(queue, "m1", "k"))

            await kit.until(lambda: looks > 2 or receiving.done())
            assert not receiving.done()
            await kit.ack(former, held)
            assert kit.texts(await receiving) == ["m1", "m2"]

    kit.run(body())


def test_a_message_that_may_be_acked_is_nobodys(kit, monkeypatch):
    """What a new owner counts as its own must be pending: another's message stands for it among those counted."""

    async def lost():
        raise BrokerUnavailable("the connection was lost after the ack had gone out")

    async def body():
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with kit.adapter(queue, source) as first, kit.adapter() as second:
            owner, other = await kit.consumer(first, source), await kit.consumer(second, source)
            await kit.publish(first, kit.message(queue, "m0", "k"))
            (doubtful,) = await kit.receive(owner, 1)
            with monkeypatch.context() as patch:
                patch.setattr(first._link, "sync", lost)
                (error,) = await owner.settle([Ack(doubtful)])
            assert isinstance(error, SettleError)
            await owner._try_to_release(doubtful.receipt.pull)
            await kit.publish(first, kit.message(queue, "m1", "k"))
            held = await kit.receive(other, 1)

            look, looks = owner._tools.provisioner.info, 0

            async def count(work):
                nonlocal looks
                looks += work is doubtful.receipt.pull.work and bool(owner._own(doubtful.receipt.pull))
                return await look(work)

            monkeypatch.setattr(owner._tools.provisioner, "info", count)
            receiving = asyncio.create_task(kit.receive(owner, 1))
            await other._try_to_release(held[0].receipt.pull)
            await kit.publish(first, kit.message(queue, "m2", "k"))
            await kit.until(lambda: looks > 2 or receiving.done())
            assert not receiving.done()
            await kit.ack(other, held)
            assert kit.texts(await receiving) == ["m2"]

    kit.run(body())


def test_a_new_owner_waits_although_the_former_one_has_acked_late_what_is_the_new_ones(kit, monkeypatch):
    """The server counts one less then: another message, which is still the former owner's, must not go unseen."""

    async def body():
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with kit.adapter(queue, source) as first, kit.adapter() as second, kit.plain() as client:
            former = await kit.consumer(first, source, lease=2.0)
            await kit.publish(first, kit.message(queue, "m0", "k"), kit.message(queue, "m1", "k"))
            lapsing, kept = await kit.receive(former, 2)
            assert await former.extend([kept], 30.0) == [None]

            owner = await kit.consumer(second, source, lease=30.0)
            look, looks = owner._tools.provisioner.info, 0

            async def count(work):
                nonlocal looks
                looks += work.name == lapsing.receipt.pull.work.name
                return await look(work)

            monkeypatch.setattr(owner._tools.provisioner, "info", count)
            receiving = asyncio.create_task(kit.receive(owner, 2))
            await kit.until(lambda: len(owner._held) == 1)  # m0, whose lease has ended
            await kit.publish(first, kit.message(queue, "m2", "k"))
            await kit.until(lambda: len(owner._held) == 2)
            await client.publish(lapsing.receipt.reply, b"+ACK")
            await client.flush()
            seen = looks
            await kit.until(lambda: looks > seen + 2 or receiving.done())
            assert not any(receipt.handed for receipt in owner._held.values())
            await kit.ack(former, [kept])
            assert kit.texts(await receiving) == ["m0", "m2"]

    kit.run(body())


def test_what_is_on_its_way_when_a_pull_begins_anew_is_not_overtaken(kit):
    async def elsewhere(message):
        async with kit.adapter() as other:
            await kit.publish(other, message)

    async def body():
        queue = kit.queue(keyed=True)
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, kit.message(queue, "m0", "k"))
            first = await kit.receive(subscription, 1)
            await kit.ack(subscription, first)
            pull = first[0].receipt.pull
            receiving = asyncio.create_task(kit.receive(subscription, 2))
            await kit.until(lambda: pull.outstanding)

            publishing = threading.Thread(target=asyncio.run, args=[elsewhere(kit.message(queue, "m1", "k"))])
            publishing.start()
            publishing.join()  # this event loop stands still, and has yet to read what came
            await pull.start()
            await kit.publish(adapter, kit.message(queue, "m2", "k"))
            assert kit.texts(await receiving) == ["m1", "m2"]

    kit.run(body())


def test_a_closed_subscription_says_so(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            subscription = await kit.consumer(adapter, source)
            receiving = asyncio.create_task(subscription.receive(9, 30))
            await asyncio.sleep(0.05)
            await subscription.aclose()
            await subscription.aclose()
            with pytest.raises(ClosedError):
                await receiving

    kit.run(body())


def test_a_dead_letter_is_stored_before_its_original_goes(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter, kit.plain() as client:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, kit.message(queue, "bad", headers={"mine": "é"}))
            (message,) = await kit.receive(subscription, 1)
            grave = DeadLetter(message, {**message.headers, DEAD: json.dumps({"reason": "failed"})})
            await client.jetstream().delete_stream(f"{kit.prefix}-dead")
            (error,) = await subscription.settle([grave])
            assert isinstance(error, SettleError)
            assert (await adapter.stats(source)).in_flight == 1
            await adapter._provisioner.ensure_dead()
            assert await subscription.settle([grave]) == [None]
            stats = await adapter.stats(source)
            assert (stats.in_flight, stats.dead) == (0, 1)
            (dead,) = await adapter.browse(source.dead_letters, limit=9)
            assert (dead.body, dead.headers, dead.channel) == (b"bad", grave.headers, "orders")

    kit.run(body())


def test_dead_letters_are_consumed_replayed_and_buried_again(kit):
    """Each time they are stored anew: an id seen before must not swallow one."""

    async def body():
        topic = kit.topic()
        mail, stock = Source(topic, "mail"), Source(topic, "stock")
        async with kit.adapter(topic, mail, stock) as adapter:
            subscription = await kit.consumer(adapter, mail)
            graves = await kit.consumer(adapter, mail.dead_letters)
            await kit.publish(adapter, kit.message(topic, "bad"))
            for _ in range(3):
                (message,) = await kit.receive(subscription, 1)
                assert message.channel == "order.placed"
                assert await subscription.settle([DeadLetter(message, {**message.headers, DEAD: "{}"})]) == [None]
                (dead,) = await kit.receive(graves, 1)
                replay = kit.message(mail, "bad", id=dead.headers["ce-id"])
                await kit.publish(adapter, replay)
                await kit.ack(graves, [dead])
            (message,) = await kit.receive(subscription, 1)
            await kit.ack(subscription, [message])
            assert (await adapter.stats(stock)).ready == 1

    kit.run(body())


def test_a_dead_letter_tried_twice_is_stored_once(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source)
            await kit.publish(adapter, kit.message(queue, "bad"))
            (message,) = await kit.receive(subscription, 1)
            grave = DeadLetter(message, {DEAD: "{}"})
            assert await subscription._answers.bury([grave]) == [None]  # and then the process dies
            assert await subscription.settle([grave]) == [None]
            assert (await adapter.stats(source)).dead == 1

    kit.run(body())


def test_browsing_pages_and_disturbs_nobody(kit):
    async def body():
        topic = kit.topic("order.*")
        one, two = kit.topic("order.one"), kit.topic("order.two")
        source = Source(topic, "g")
        async with kit.adapter(one, two, source) as adapter:
            await kit.publish(adapter, *(kit.message((one, two)[i % 2], f"m{i}") for i in range(10)))
            subscription = await kit.consumer(adapter, source, prefetch=3)
            await kit.ack(subscription, await kit.receive(subscription, 3))
            await subscription.aclose()
            pages, after = [], None
            while page := await adapter.browse(source, limit=3, after=after):
                pages.append(page)
                after = str(page[-1].position)
            assert [kit.texts(p) for p in pages] == [["m3", "m4", "m5"], ["m6", "m7", "m8"], ["m9"]]
            assert pages[0][0].channel == "order.two"
            assert (await adapter.stats(source)).ready >= 4

    kit.run(body())


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_a_group_can_begin_again(kit, keyed):
    async def body():
        topic = kit.topic(keyed=keyed)
        source = Source(topic, "g")
        async with kit.adapter(topic, source) as adapter:
            await kit.publish(adapter, *(kit.message(topic, f"m{i}", "k") for i in range(3)))
            await asyncio.sleep(0.05)
            subscription = await kit.consumer(adapter, source)
            first = await kit.receive(subscription, 3)
            await kit.ack(subscription, first)
            await kit.publish(adapter, *(kit.message(topic, f"m{i}", "k") for i in range(3, 6)))
            rest = await kit.receive(subscription, 3)
            await kit.ack(subscription, rest)
            await subscription.aclose()
            middle = datetime.fromtimestamp((first[-1].time + rest[0].time) / 2, UTC)
            for start, expected in [("earliest", 6), (first[1].position, 5), (middle, 3)]:
                subscription = await kit.consumer(adapter, source, start=start)
                got = await kit.receive(subscription, expected)
                assert kit.texts(got) == [f"m{i}" for i in range(6 - expected, 6)]
                await kit.ack(subscription, got)
                await subscription.aclose()
            subscription = await kit.consumer(adapter, source, start="latest")
            assert await subscription.receive(9, 0.3) == []

    kit.run(body())


def test_a_queue_cannot_begin_again(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            with pytest.raises(UnsupportedFeature, match="replay"):
                await kit.consumer(adapter, source, start="earliest")

    kit.run(body())


@pytest.mark.parametrize(("theirs", "ours"), [(20.0, 3.0), (3.0, 20.0)], ids=["shorter", "longer"])
def test_another_lease_does_not_disturb_who_uses_the_consumer(kit, theirs, ours):
    """A consumer's ``ack_wait`` is everybody's; a lease that lasts longer is renewed on the way."""

    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            await kit.publish(adapter, kit.message(queue, "theirs"), kit.message(queue, "ours"))
            first = await kit.consumer(adapter, source, lease=theirs)
            await kit.receive(first, 1)
            second = await kit.consumer(adapter, source, lease=ours)
            assert (first._ack_wait, second._ack_wait) == (theirs, theirs)
            kept = await kit.receive(second, 1)
            await asyncio.sleep(4.0)
            await kit.ack(second, kept)
            await first.aclose()
            await second.aclose()
            if theirs < ours:  # the first one's was lost meanwhile
                return
            await kit.ack(third := await kit.consumer(adapter, source, lease=7.0), await kit.receive(third, 1))
            await third.aclose()
            assert (await kit.consumer(adapter, source, lease=7.0))._ack_wait == 7.0

    kit.run(body())


def test_a_topic_on_core_nats_reaches_who_listens(kit):
    async def body():
        topic = kit.topic("prices.*", durable=False)
        price = kit.topic("prices.oil", durable=False)
        one, two = Source(topic, "one"), Source(topic, "two")
        async with kit.adapter(price, one, two) as adapter:
            await kit.publish(adapter, kit.message(price, "nobody yet"))
            first, second = await kit.consumer(adapter, one), await kit.consumer(adapter, two)
            member = await kit.consumer(adapter, one)
            await kit.publish(adapter, *(kit.message(price, f"m{i}") for i in range(20)))
            got = await kit.receive(second, 20)
            assert {m.channel for m in got} == {"prices.oil"}
            await kit.ack(second, got)
            shared = [*(await first.receive(99, 0.2)), *(await member.receive(99, 0.2))]
            assert sorted(kit.texts(shared)) == sorted(f"m{i}" for i in range(20))
            await kit.publish(adapter, kit.message(Source(topic, "two"), "again"))
            (again,) = await kit.receive(second, 1)
            assert await second.settle([Nack(again, delay=0.3)]) == [None]
            (again,) = await kit.receive(second, 1)
            assert again.deliveries == 2
            assert await second.settle([DeadLetter(again, {DEAD: "{}"})]) == [None]
            assert (await adapter.stats(two)).dead == 1
            assert await first.receive(1, 0.1) == []

    kit.run(body())


def test_receiving_from_what_vanished_says_so(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter, kit.plain() as client:
            subscription = await kit.consumer(adapter, source)
            adapter._provisioner._provision = "verify"  # it may not make it again
            await subscription.receive(1, 0.05)
            await client.jetstream().delete_stream(f"{kit.prefix}-queue-orders")
            with pytest.raises(BrokerUnavailable, match="does not exist"):
                while True:
                    await subscription.receive(1, 1)

    kit.run(body())
