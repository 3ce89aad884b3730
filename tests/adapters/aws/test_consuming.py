"""Consuming: leases that SQS does not guard, polls that outlive their consumer, partial failures, replies, removal."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time

import pytest
from botocore.exceptions import ClientError

from msgbus.adapter import DEAD, Ack, Address, DeadLetter, Kind, Nack, Source, SystemClock
from msgbus.errors import AccessDenied, BrokerError, LeaseLost, SettleError, TopologyError
from msgbus_aws import _replies


def test_a_late_ack_cannot_delete_the_new_owners_message(moto):
    """moto, like SQS, may delete by an old receipt: so nothing is sent once the lease is over."""

    async def body():
        source = Source(moto.queue())
        async with moto.adapter(source) as adapter:
            await moto.publish(adapter, moto.message(source.address))
            late = await moto.consumer(adapter, source, lease=1)
            (lost,) = await moto.receive(late, 1)
            new = await moto.consumer(adapter, source)
            (mine,) = await moto.receive(new, 1)
            (error,) = await late.settle([Ack(lost)])
            assert isinstance(error, LeaseLost)
            assert list(await new.extend([mine], 30)) == [None]
            await moto.ack(new, [mine])

    moto.run(body())


def test_what_a_poll_brings_after_the_close_goes_back(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source, query="&wait=3") as adapter:
            closing = await kit.consumer(adapter, source)
            assert list(await closing.receive(1, 0.2)) == []  # its poll waits on for three seconds
            await closing.aclose()
            await kit.publish(adapter, *(kit.message(source.address) for _ in range(5)))
            other = await kit.consumer(adapter, source)
            before = time.monotonic()
            assert len(await kit.receive(other, 5)) == 5
            assert time.monotonic() - before < 20  # not the lease of 30 s

    kit.run(body())


def test_polls_end_with_the_adapter_and_hold_it_up_no_longer(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source, query="&wait=2") as adapter:
            subscription = await kit.consumer(adapter, source)
            assert list(await subscription.receive(1, 0.1)) == []
        await kit.eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("msgbus-aws")])

    kit.run(body())


def test_what_nobody_asks_for_goes_to_others(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            idle = await kit.consumer(adapter, source)
            assert list(await idle.receive(10, 0.1)) == []  # leaves a poll behind
            await kit.publish(adapter, kit.message(source.address))
            busy = await kit.consumer(adapter, source)
            assert len(await kit.receive(busy, 1, within=20)) == 1

    kit.run(body())


def test_a_failed_entry_is_that_messages_own(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address) for _ in range(3)))
            subscription = await kit.consumer(adapter, source)
            received = await kit.receive(subscription, 3)
            failed = {"Code": "InternalError", "Message": "try again", "SenderFault": False}
            spoil = {"on": True}

            def refuse_one(parsed, **_):
                if spoil.pop("on", False):
                    parsed["Successful"] = [e for e in parsed["Successful"] if e["Id"] != "1"]
                    parsed["Failed"] = [{"Id": "1", **failed}]

            adapter.raw.meta.events.register("after-call.sqs.DeleteMessageBatch", refuse_one)
            results = await subscription.settle([Ack(r) for r in received])
            assert (results[0], results[2]) == (None, None)
            assert type(results[1]) is SettleError
            (again,) = await subscription.settle([Ack(received[1])])
            assert again is None or isinstance(again, LeaseLost)  # it was deleted after all, which SQS does not mind

    kit.run(body())


def test_what_is_given_back_may_come_again_before_the_answer_that_says_so(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, kit.message(source.address))
            subscription = await kit.consumer(adapter, source)
            (first,) = await kit.receive(subscription, 1)
            came = threading.Event()
            take_in = subscription._poller._on_messages

            def arrived(messages, sent):
                take_in(messages, sent)
                if messages:
                    came.set()

            subscription._poller._on_messages = arrived
            events = adapter.raw.meta.events
            events.register("after-call.sqs.ChangeMessageVisibilityBatch", lambda **_: came.wait(10) and None)
            again = asyncio.create_task(kit.receive(subscription, 1, within=20))  # not the lease of 30 s
            assert list(await subscription.settle([Nack(first)])) == [None]
            assert came.is_set()
            await kit.ack(subscription, await again)

    kit.run(body())


def test_settling_goes_in_batches_of_ten(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address) for _ in range(40)))
            subscription = await kit.consumer(adapter, source, prefetch=40)
            received = await kit.receive(subscription, 40)
            seen = []
            adapter.raw.meta.events.register(
                "provide-client-params.sqs.DeleteMessageBatch", lambda params, **_: seen.append(len(params["Entries"]))
            )
            await kit.ack(subscription, received)
            assert seen == [10, 10, 10, 10]

    kit.run(body())


def test_a_lease_is_never_asked_for_beyond_twelve_hours(kit):
    """SQS ends it twelve hours after the receipt, extended or not; from then on it is lost."""

    class Later(SystemClock):
        ahead = 0.0

        def monotonic(self):
            return time.monotonic() + self.ahead

    async def body():
        source, clock = Source(kit.queue()), Later()
        async with kit.adapter(source, clock=clock) as adapter:
            await kit.publish(adapter, kit.message(source.address))
            subscription = await kit.consumer(adapter, source)
            (held,) = await kit.receive(subscription, 1)
            asked = []
            adapter.raw.meta.events.register(
                "provide-client-params.sqs.ChangeMessageVisibilityBatch",
                lambda params, **_: asked.extend(e["VisibilityTimeout"] for e in params["Entries"]),
            )
            assert list(await subscription.extend([held], 11 * 3600)) == [None]
            clock.ahead = 10 * 3600
            assert list(await subscription.extend([held], 11 * 3600)) == [None]
            assert asked[0] == 11 * 3600
            assert 0 < asked[1] <= 2 * 3600
            clock.ahead = 12 * 3600 + 60
            (error,) = await subscription.extend([held], 60)
            assert isinstance(error, LeaseLost)

    kit.run(body())


def test_a_lease_is_asked_for_in_whole_seconds_whatever_the_clock_says(kit):
    """Floating point makes (4095.9 + 2) - 4095.9 a little less than 2 for some clocks, which is a lease of 1 s then."""

    class Stopped(SystemClock):
        at: float | None = None

        def monotonic(self):
            return time.monotonic() if self.at is None else self.at

    async def body():
        source, clock = Source(kit.queue()), Stopped()
        async with kit.adapter(source, clock=clock) as adapter:
            await kit.publish(adapter, kit.message(source.address))
            subscription = await kit.consumer(adapter, source)
            (held,) = await kit.receive(subscription, 1)
            asked = []
            adapter.raw.meta.events.register(
                "provide-client-params.sqs.ChangeMessageVisibilityBatch",
                lambda params, **_: asked.extend(e["VisibilityTimeout"] for e in params["Entries"]),
            )
            border = 2.0 ** math.ceil(math.log2(time.monotonic() + 60))
            moments = (border - 1 + n / 97 for n in range(97))
            held.receipt.received = border - 60
            held.receipt.deadline = clock.at = next(now for now in moments if (now + 2) - now < 2)
            assert list(await subscription.extend([held], 2)) == [None]
            clock.at = None
            assert asked == [2]

    kit.run(body())


def test_the_native_redrive_policy_is_the_net(kit):
    """A message whose consumers die before msgbus can decide goes to the same dead letters."""

    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source, query="&max_receive_count=2") as adapter:
            await kit.publish(adapter, kit.message(source.address, "poison"))
            url, sqs = kit.queue_url("orders"), kit.client()
            for _ in range(2):  # consumers that die
                assert "Messages" in sqs.receive_message(QueueUrl=url, VisibilityTimeout=0, WaitTimeSeconds=2)
            subscription = await kit.consumer(adapter, source)
            assert list(await subscription.receive(1, 2.0)) == []
            (dead,) = await kit.receive(await kit.consumer(adapter, source.dead_letters), 1)
            assert (dead.body, DEAD in dead.headers) == (b"poison", False)

    kit.run(body())


def test_dead_letters_of_one_key_are_all_listed(kit):
    """In one message group only ten at a time would be seen."""

    async def body():
        source = Source(kit.queue(keyed=True))
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, str(n), key="k") for n in range(15)))
            subscription = await kit.consumer(adapter, source)
            buried = 0
            while buried < 15:
                received = await kit.receive(subscription, 1)
                letters = [DeadLetter(m, {**m.headers, DEAD: "{}"}) for m in received]
                assert list(await subscription.settle(letters)) == [None] * len(letters)
                buried += len(received)
            dead = await kit.receive(await kit.consumer(adapter, source.dead_letters, prefetch=100), 15)
            assert sorted(int(m.body) for m in dead) == list(range(15))
            assert {m.key for m in dead} == {"k"}

    kit.run(body())


def test_a_retry_keeps_its_place_in_its_key(kit):
    async def body():
        source = Source(kit.queue(keyed=True))
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, *(kit.message(source.address, str(n), key="k") for n in range(3)))
            subscription = await kit.consumer(adapter, source)
            received = await kit.receive(subscription, 3)
            nacks = [Nack(received[0], 1.0), *(Nack(m, counted=False) for m in received[1:])]
            assert list(await subscription.settle(nacks)) == [None] * 3
            again = []
            while len(again) < 3:
                some = await kit.receive(subscription, 1)
                again += some
                await kit.ack(subscription, some)
            assert [m.body for m in again] == [b"0", b"1", b"2"]

    kit.run(body())


def test_a_reply_queue_goes_with_its_process(kit):
    async def body():
        async with kit.adapter() as adapter:
            answers = await kit.consumer(adapter, Source(Address(Kind.REPLY, "me")))
            assert _reply_queues(kit)
            await kit.publish(adapter, kit.message(Address(Kind.REPLY, answers.address), "42"))
            assert [m.body for m in await kit.receive(answers, 1)] == [b"42"]
        assert not [url for url in _reply_queues(kit) if url.endswith(answers.address)]

    kit.run(body())


def test_stale_reply_queues_are_swept_and_live_ones_are_not(kit, monkeypatch):
    monkeypatch.setattr(_replies, "_BEAT", 0.2)

    async def body():
        sqs = kit.client()
        for name, age in (("dead", 2 * 3600), ("alive", 60)):
            tags = {"msgbus-alive": str(int(time.time() - age))}
            sqs.create_queue(QueueName=f"msgbus_replies_{kit.prefix}_{name}", tags=tags)
        sqs.create_queue(QueueName=f"msgbus_replies_{kit.prefix}_foreign")  # nobody says that it is ours
        async with kit.adapter() as adapter:
            answers = await kit.consumer(adapter, Source(Address(Kind.REPLY, "me")))
            await kit.eventually(lambda: not [u for u in _reply_queues(kit) if u.endswith(f"{kit.prefix}_dead")])
            left = {url.rpartition("_")[2] for url in _reply_queues(kit) if kit.prefix in url}
            assert left == {"alive", "foreign"}
            url = next(u for u in _reply_queues(kit) if u.endswith(answers.address))
            first = int(sqs.list_queue_tags(QueueUrl=url)["Tags"]["msgbus-alive"])
            await kit.eventually(lambda: int(sqs.list_queue_tags(QueueUrl=url)["Tags"]["msgbus-alive"]) > first)

    kit.run(body())


def _reply_queues(kit):
    return kit.client().list_queues(QueueNamePrefix="msgbus_replies_").get("QueueUrls", [])


def test_removing_leaves_nothing(kit):
    async def body():
        topic, keyed = Source(kit.topic(), "g"), Source(kit.queue(keyed=True))
        async with kit.adapter(topic, keyed) as adapter:
            await kit.publish(adapter, kit.message(keyed.address, key="k", delay=60))
            for source in (topic, keyed):
                for _ in range(2):
                    await adapter.remove(source)
                with pytest.raises(TopologyError):
                    await adapter.stats(source)
            assert kit.client().list_queues(QueueNamePrefix=kit.prefix).get("QueueUrls", []) == []
            arns = json.dumps(kit.client("sns").list_subscriptions()["Subscriptions"])
            assert kit.prefix not in arns

    kit.run(body())


def test_what_is_joined_is_not_removed(kit):
    async def body():
        kit.client().create_queue(QueueName=f"Legacy_{kit.prefix}")
        source = Source(kit.queue(queue=f"Legacy_{kit.prefix}"))
        async with kit.adapter(source) as adapter:
            with pytest.raises(TopologyError, match="joined, not ours"):
                await adapter.remove(source)

    kit.run(body())


def test_a_missing_permission_is_named(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:

            def deny(model, **_):
                status = {"HTTPStatusCode": 403}
                error = {"Code": "AccessDenied", "Message": "no"}
                raise ClientError({"Error": error, "ResponseMetadata": status}, model.name)

            events = adapter.raw.meta.events
            events.register("before-call.sqs", deny)
            (result,) = await adapter.publish([kit.message(source.address)])
            assert "needs the permission sqs:SendMessage" in str(result)
            with pytest.raises(AccessDenied, match="sqs:GetQueueAttributes"):
                await adapter.stats(source)
            events.unregister("before-call.sqs", deny)

    kit.run(body())


def test_a_queue_that_was_deleted_is_an_error_that_says_so(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            subscription = await kit.consumer(adapter, source)
            kit.client().delete_queue(QueueUrl=kit.queue_url("orders"))
            with pytest.raises(BrokerError, match="orders"):
                await asyncio.wait_for(_until_error(subscription), 20)

    kit.run(body())


async def _until_error(subscription):
    while True:
        await subscription.receive(1, 1.0)
