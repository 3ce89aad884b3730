"""Confirmation: each message's own result, whatever happens to its neighbours."""

from __future__ import annotations

import asyncio

import pytest

from msgbus.adapter import ATTEMPTS, Address, Kind, Source
from msgbus.errors import (
    ClosedError,
    MessageTooLarge,
    NoResponders,
    PublishRejected,
    PublishTimeout,
    Unroutable,
)


def test_one_bad_message_fails_alone(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            good = [kit.message(queue, f"m{i}") for i in range(98)]
            bad = [
                kit.message(kit.queue("missing"), "x"),
                kit.message(queue, "x", headers={"Nats-Rollup": "all"}),
            ]
            results = await adapter.publish([*good[:50], bad[0], *good[50:], bad[1]])
            failed = {i: type(error) for i, error in enumerate(results) if error is not None}
            assert failed == {50: Unroutable, 99: PublishRejected}
            assert (await adapter.stats(Source(queue))).ready == 98

    kit.run(body())


def test_the_same_id_is_stored_once(kit):
    async def body():
        queue, other = kit.queue(), kit.queue("other")
        async with kit.adapter(queue, other, Source(queue), Source(other)) as adapter:
            await kit.publish(adapter, *(kit.message(queue, "x", id="same") for _ in range(3)))
            await kit.publish(adapter, kit.message(other, "x", id="same"))
            assert (await adapter.stats(Source(queue))).ready == 1
            assert (await adapter.stats(Source(other))).ready == 1

    kit.run(body())


def test_topics_share_a_stream_but_not_ids(kit):
    async def body():
        one, two = kit.topic("one"), kit.topic("two")
        first, second = Source(one, "g"), Source(two, "g")
        async with kit.adapter(first, second) as adapter:
            await kit.publish(adapter, kit.message(one, "x", id="same"), kit.message(two, "x", id="same"))
            assert (await adapter.stats(first)).ready == (await adapter.stats(second)).ready == 1

    kit.run(body())


def test_a_retry_and_a_replay_are_stored_although_their_id_was(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            await kit.publish(
                adapter,
                kit.message(queue, "first", id="same"),
                kit.message(queue, "retry", id="same", headers={ATTEMPTS: "1"}),
                kit.message(Source(queue), "replay", id="same"),
                kit.message(Source(queue), "replay again", id="same"),
            )
            assert (await adapter.stats(Source(queue))).ready == 4

    kit.run(body())


def test_a_full_stream_refuses_and_the_publish_after_it_has_its_own_result(kit):
    async def body():
        stream, subject = f"{kit.prefix}-mine", f"{kit.prefix}.mine"
        queue, other = kit.queue(stream=stream, subject=subject, declare=False), kit.queue("other")
        async with kit.plain() as client:
            await client.jetstream().add_stream(name=stream, subjects=[subject], max_msgs=1, discard="new")
            async with kit.adapter(queue, other) as adapter:
                results = await adapter.publish(
                    [kit.message(queue, "fits"), kit.message(queue, "refused"), kit.message(other, "elsewhere")]
                )
                assert results[0] is results[2] is None
                assert type(results[1]) is PublishRejected
                assert "maximum messages exceeded" in str(results[1])
                (error,) = await adapter.publish([kit.message(queue, "x", delay=1)])
                assert isinstance(error, PublishRejected)
                assert "its stream is joined" in str(error)

    kit.run(body())


def test_bodies_up_to_the_limit_pass_and_one_byte_more_is_named(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            limit = adapter.capabilities.max_body
            headers = {"big": "h" * 30_000}
            results = await adapter.publish(
                [
                    kit.message(queue, "x" * limit, headers=headers),
                    kit.message(queue, "x" * (limit + 1)),
                    kit.message(queue, "x" * limit, headers={"big": "h" * 40_000}),
                    kit.message(queue, "small"),
                ]
            )
            assert results[0] is results[3] is None
            assert isinstance(results[1], MessageTooLarge)
            assert (results[1].size, results[1].limit) == (limit + 1, limit)
            assert isinstance(results[2], MessageTooLarge)
            assert adapter.health.ok
            assert (await adapter.stats(Source(queue))).ready == 2

    kit.run(body())


def test_a_stream_with_a_smaller_limit_says_so(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter, kit.plain() as client:
            config = (await client.jetstream().stream_info(f"{kit.prefix}-queue-orders")).config
            await client.jetstream().update_stream(config, max_msg_size=100)
            (error,) = await adapter.publish([kit.message(queue, "x" * 200)])
            assert isinstance(error, MessageTooLarge)

    kit.run(body())


def test_a_cancelled_publish_leaves_nothing_behind(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            for _ in range(20):
                task = asyncio.create_task(adapter.publish([kit.message(queue, "x") for _ in range(50)]))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await kit.publish(adapter, kit.message(queue, "after"))
            assert adapter._confirms._pending == {}
            assert adapter._confirms._bytes == 0

    kit.run(body())


def test_a_silent_server_is_a_timeout_that_may_be_tried_again(kit):
    """Somebody listens on the subject, but no stream does: nothing ever confirms."""

    async def body():
        queue = kit.queue("silent")
        async with kit.adapter(query="&timeout=0.3") as adapter, kit.plain() as client:
            await client.subscribe(f"{kit.prefix}.queue.silent")
            await client.flush()
            (error,) = await adapter.publish([kit.message(queue, "x")])
            assert isinstance(error, PublishTimeout)
            assert error.retryable

    kit.run(body())


def test_an_impostor_does_not_confirm(kit):
    async def body():
        queue = kit.queue("silent")
        async with kit.adapter(query="&timeout=20") as adapter, kit.plain() as client:

            async def answer(message):
                await message.respond(b"hello")

            await client.subscribe(f"{kit.prefix}.queue.silent", cb=answer)
            await client.flush()
            (error,) = await adapter.publish([kit.message(queue, "x")])
            assert isinstance(error, PublishTimeout)
            assert "not JetStream" in str(error)

    kit.run(body())


def test_many_large_messages_wait_for_room(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            batches = [[kit.message(queue, "x" * 900_000) for _ in range(30)] for _ in range(3)]
            results = await asyncio.gather(*map(adapter.publish, batches))
            assert [error for batch in results for error in batch if error] == []
            assert (await adapter.stats(Source(queue))).ready == 90

    kit.run(body())


def test_calls_at_the_same_time_do_not_mix(kit):
    """Order is kept from call to call, although none waits for the one before."""

    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            calls = [[kit.message(queue, f"{n}-{i} {'x' * 5000}") for i in range(100)] for n in range(8)]
            await asyncio.gather(*(kit.publish(adapter, *call) for call in calls))
            expected = [message.body.decode() for call in calls for message in call]
            assert kit.texts(await adapter.browse(source, limit=800)) == expected

    kit.run(body())


def test_requests_without_responders_fail_at_once(kit):
    async def body():
        price = Address(Kind.REQUEST, "price")
        async with kit.adapter() as adapter:
            loop = asyncio.get_running_loop()
            began = loop.time()
            (error,) = await adapter.publish([kit.message(price, "?")])
            assert isinstance(error, NoResponders)
            assert loop.time() - began < 1

    kit.run(body())


def test_what_core_nats_cannot_delay_is_refused(kit):
    async def body():
        live = kit.topic("live", durable=False)
        async with kit.adapter() as adapter:
            (error,) = await adapter.publish([kit.message(live, "x", delay=1)])
            assert isinstance(error, PublishRejected)
            assert "core NATS" in str(error)

    kit.run(body())


def test_a_delayed_message_comes_on_time_and_once(kit):
    async def body():
        queue = kit.queue()
        source = Source(queue)
        async with kit.adapter(queue, source) as adapter:
            subscription = await kit.consumer(adapter, source)
            loop = asyncio.get_running_loop()
            began = loop.time()
            late = kit.message(queue, "late", delay=0.6, headers={"mine": " é "})
            await kit.publish(adapter, late, kit.message(queue, "soon", delay=0.3))
            await kit.publish(adapter, late)  # tried again: the same id
            assert (await adapter.stats(source)).delayed == 2
            soon, later = await kit.receive(subscription, 2)
            assert loop.time() - began >= 0.6
            assert kit.texts([soon, later]) == ["soon", "late"]
            assert later.headers == late.headers
            await kit.ack(subscription, [soon, later])
            assert await subscription.receive(9, 1.0) == []

    kit.run(body())


def test_after_close_nothing_is_published(kit):
    async def body():
        async with kit.adapter() as adapter:
            await adapter.aclose()
            with pytest.raises(ClosedError):
                await adapter.publish([kit.message(kit.queue(), "x")])
            with pytest.raises(ClosedError):
                await adapter.stats(Source(kit.queue()))

    kit.run(body())
