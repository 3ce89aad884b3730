"""Publishing: shared requests, each message's own result, throttling, order, large bodies."""

from __future__ import annotations

import asyncio
import json

import pytest
from botocore.exceptions import ClientError

from msgbus import Bus, Queue
from msgbus.adapter import Address, DeadLetter, Kind, Provision, Source, Topology
from msgbus.errors import MessageTooLarge, NotSent, PublishRejected, TopologyError, Unroutable


def requests(adapter, operation):
    """Count the requests of an operation, as the client makes them."""
    seen = []
    adapter.raw.meta.events.register(f"provide-client-params.sqs.{operation}", lambda params, **_: seen.append(params))
    return seen


def tamper(adapter, operation, change):
    """Change what the server answers, as only the real service does."""
    adapter.raw.meta.events.register(f"after-call.sqs.{operation}", lambda parsed, **_: change(parsed))


def test_concurrent_publishes_share_requests(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            seen = requests(adapter, "SendMessageBatch")
            await asyncio.gather(*(kit.publish(adapter, kit.message(source.address)) for _ in range(100)))
            assert len(seen) <= 20
            assert sum(len(params["Entries"]) for params in seen) == 100
            assert (await adapter.stats(source)).ready == 100

    kit.run(body())


def test_a_batch_stays_within_the_services_size(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            seen = requests(adapter, "SendMessageBatch")
            big = b"x" * adapter.capabilities.max_body
            await kit.publish(adapter, *(kit.message(source.address, big) for _ in range(4)))
            assert [len(params["Entries"]) for params in seen] == [1, 1, 1, 1]

    kit.run(body())


def test_a_partial_failure_is_that_messages_own(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:

            def refuse_two(parsed):
                parsed["Successful"] = [e for e in parsed["Successful"] if e["Id"] not in "13"]
                parsed["Failed"] = [
                    {"Id": "1", "Code": "InvalidMessageContents", "Message": "bad", "SenderFault": True},
                    {"Id": "3", "Code": "InternalError", "Message": "try again", "SenderFault": False},
                ]

            tamper(adapter, "SendMessageBatch", refuse_two)
            results = await adapter.publish([kit.message(source.address) for _ in range(5)])
            assert [type(r) for r in (results[0], results[2], results[4])] == [type(None)] * 3
            assert isinstance(results[1], PublishRejected)
            assert "InvalidMessageContents: bad" in str(results[1])
            assert isinstance(results[3], NotSent)
            assert results[3].retryable

    kit.run(body())


def test_a_message_the_service_says_nothing_of_is_not_confirmed(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            tamper(adapter, "SendMessageBatch", lambda parsed: parsed.update(Successful=[]))
            (result,) = await adapter.publish([kit.message(source.address)])
            assert "did not say" in str(result)

    kit.run(body())


def test_throttling_can_be_tried_again(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:

            def throttle(**_):
                raise ClientError({"Error": {"Code": "RequestThrottled", "Message": "slow down"}}, "SendMessageBatch")

            adapter.raw.meta.events.register("before-call.sqs.SendMessageBatch", throttle)
            (result,) = await adapter.publish([kit.message(source.address)])
            assert isinstance(result, NotSent)
            assert result.retryable
            adapter.raw.meta.events.unregister("before-call.sqs.SendMessageBatch", throttle)
            await kit.publish(adapter, kit.message(source.address))

    kit.run(body())


def test_a_throttled_bus_tries_again(kit):
    async def body():
        orders, refused = Queue("orders", str), []

        def throttle(**_):
            if len(refused) < 3:
                refused.append(1)
                raise ClientError({"Error": {"Code": "RequestThrottled", "Message": "slow down"}}, "SendMessageBatch")

        bus = Bus(kit.url(), namespace=kit.prefix, idempotency_url="memory://throttled")
        bus.on(orders)(lambda _: None)
        async with bus:
            (await bus.raw()).meta.events.register("before-call.sqs.SendMessageBatch", throttle)
            await bus.send(orders, "x")
            assert len(refused) == 3
            assert (await bus.stats(orders)).ready == 1

    kit.run(body())


def test_a_deleted_queue_is_noticed_and_found_again(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, kit.message(source.address))
            kit.client().delete_queue(QueueUrl=kit.queue_url("orders"))
            (result,) = await adapter.publish([kit.message(source.address)])
            assert isinstance(result, Unroutable)
            kit.client().create_queue(QueueName=f"{kit.prefix}_2eorders")
            await kit.publish(adapter, kit.message(source.address))

    kit.run(body())


def test_a_keys_messages_keep_their_order_at_any_concurrency(kit):
    async def body():
        source = Source(kit.queue(keyed=True))
        async with kit.adapter(source) as adapter:
            publishes = [
                kit.publish(adapter, *(kit.message(source.address, f"{key}:{n}", key=key) for key in "abc"))
                for n in range(30)
            ]
            await asyncio.gather(*publishes)
            subscription, got = await kit.consumer(adapter, source, prefetch=30), []
            while len(got) < 90:
                received = await kit.receive(subscription, 1)
                got += received
                await kit.ack(subscription, received)
            for key in "abc":
                assert [m.body for m in got if m.key == key] == [f"{key}:{n}".encode() for n in range(30)]

    kit.run(body())


def test_a_second_publish_of_an_id_is_dropped_on_a_keyed_channel(kit):
    """And a replay of the same message, meant for its source, is not."""

    async def body():
        source = Source(kit.queue(keyed=True))
        async with kit.adapter(source) as adapter:
            for target in (source.address, source.address, source):
                await kit.publish(adapter, kit.message(target, key="k", id="same"))
            assert (await adapter.stats(source)).ready == 2

    kit.run(body())


def test_a_message_of_many_headers_is_lost_to_no_limit(kit):
    """Ten attributes is what there is; a message for a topic with more would be dropped by SNS."""

    async def body():
        topic = kit.topic()
        source = Source(topic, "g")
        headers = {f"h{n}": f"v{n}" for n in range(40)} | {"empty": "", "long": "é" * 3000}
        async with kit.adapter(source) as adapter:
            await kit.publish(adapter, kit.message(topic, headers=headers))
            (received,) = await kit.receive(await kit.consumer(adapter, source), 1)
            assert received.headers == {"ce-id": "id-1", **headers}

    kit.run(body())


def test_verify_finds_topics_without_an_account(kit):
    async def body():
        topic, source = kit.topic(), Source(kit.topic(), "g")
        async with kit.adapter(provision=Provision.VERIFY) as verifying:
            with pytest.raises(TopologyError, match="placed"):
                await verifying._provisioner.declare(_topology(source))
            async with kit.adapter(topic, source) as adapter:
                await verifying.declare(_topology(source))
                await kit.publish(verifying, kit.message(topic))
                assert (await adapter.stats(source)).ready == 1

    kit.run(body())


def test_verify_misses_a_subscription(kit):
    async def body():
        source = Source(kit.topic(), "g")
        async with kit.adapter(source), kit.adapter(provision=Provision.VERIFY) as verifying:
            sns = kit.client("sns")
            for found in sns.list_subscriptions()["Subscriptions"]:
                if kit.prefix in found["Endpoint"]:
                    sns.unsubscribe(SubscriptionArn=found["SubscriptionArn"])
            with pytest.raises(TopologyError, match="not subscribed"):
                await verifying.declare(_topology(source))

    kit.run(body())


def _topology(source):
    return Topology((source.address,), (source,))


def test_large_bodies_go_to_s3(s3kit):
    async def body():
        bucket = f"large-{s3kit.prefix}"
        s3kit.client("s3").create_bucket(Bucket=bucket)
        source = Source(s3kit.queue())
        large, small = bytes(range(256)) * 4000, b"small"
        async with s3kit.adapter(source, query=f"&large=s3://{bucket}/bodies") as adapter:
            await s3kit.publish(adapter, s3kit.message(source.address, large), s3kit.message(source.address, small))
            subscription = await s3kit.consumer(adapter, source)
            received = await s3kit.receive(subscription, 2)
            assert {m.body for m in received} == {large, small}
            objects = s3kit.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
            assert [o["Size"] for o in objects] == [len(large)]
            assert objects[0]["Key"].startswith("bodies/")
            big = next(m for m in received if m.body == large)
            assert list(await subscription.settle([DeadLetter(big, dict(big.headers))])) == [None]
            (dead,) = await s3kit.receive(await s3kit.consumer(adapter, source.dead_letters), 1)
            assert dead.body == large  # the letter has the same claim check
            assert len(s3kit.client("s3").list_objects_v2(Bucket=bucket)["Contents"]) == 1

    s3kit.run(body())


def test_a_lost_or_foreign_object_is_a_dead_letter(s3kit):
    """Nobody can make us read an object outside of the prefix, or a huge one, and what is gone blocks nothing."""

    async def body():
        bucket = f"large-{s3kit.prefix}"
        s3kit.client("s3").create_bucket(Bucket=bucket)
        s3kit.client("s3").put_object(Bucket=bucket, Key="secret", Body=b"secret")
        s3kit.client("s3").put_object(Bucket=bucket, Key="bodies/huge", Body=bytes(300_001))
        source = Source(s3kit.queue())
        async with s3kit.adapter(source, query=f"&large=s3://{bucket}/bodies&max_large=300000") as adapter:
            for key in ("secret", "bodies/gone", "bodies/huge"):
                s3kit.client().send_message(
                    QueueUrl=s3kit.queue_url("orders"),
                    MessageBody=json.dumps({"bucket": bucket, "key": key}),
                    MessageAttributes={"msgbus-body": {"DataType": "String", "StringValue": "s3"}},
                )
            await s3kit.publish(adapter, s3kit.message(source.address, "good"))
            subscription = await s3kit.consumer(adapter, source)
            assert [m.body for m in await s3kit.receive(subscription, 1)] == [b"good"]
            async with asyncio.timeout(20):
                while (await adapter.stats(source)).dead != 3:
                    assert list(await subscription.receive(1, 0.2)) == []
            letters = s3kit.client().receive_message(
                QueueUrl=s3kit.queue_url("orders_dlq"), MaxNumberOfMessages=10, MessageAttributeNames=["All"]
            )["Messages"]
            details = [json.dumps(letter["MessageAttributes"]) for letter in letters]
            assert sum("is gone" in detail for detail in details) == 1
            assert sum("outside of" in detail for detail in details) == 1
            assert sum("more than max_large" in detail for detail in details) == 1

    s3kit.run(body())


def test_without_a_bucket_a_large_body_is_refused(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            limit = adapter.capabilities.max_body
            (result,) = await adapter.publish([kit.message(source.address, b"x" * (limit + 1))])
            assert isinstance(result, MessageTooLarge)
            many = {f"h{n}": "x" * 4000 for n in range(70)}
            (result,) = await adapter.publish([kit.message(source.address, headers=many)])
            assert isinstance(result, MessageTooLarge)  # headers count, too

    kit.run(body())


def test_a_reply_to_a_process_that_has_gone_is_an_error(kit):
    async def body():
        async with kit.adapter() as adapter:
            (result,) = await adapter.publish([kit.message(Address(Kind.REPLY, "msgbus_replies_gone"))])
            assert isinstance(result, Unroutable)

    kit.run(body())
