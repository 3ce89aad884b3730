"""Ordinary boto3 programs, AWS's own events and we understand each other, both ways."""

from __future__ import annotations

import base64
import json

from msgbus.adapter import Source

EVENTS = {
    "s3": {"Records": [{"eventSource": "aws:s3", "s3": {"object": {"key": "a.txt"}}}]},
    "eventbridge": {"detail-type": "EC2 Instance State-change", "source": "aws.ec2", "detail": {"state": "running"}},
}


def test_a_plain_message_is_consumed(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            url, sqs = kit.queue_url("orders"), kit.client()
            sqs.send_message(QueueUrl=url, MessageBody="bare")
            (bare,) = await kit.receive(subscription := await kit.consumer(adapter, source), 1)
            assert (bare.body, bare.headers, bare.channel, bare.key) == (b"bare", {}, source.address.name, None)
            assert bare.raw["Body"] == "bare"
            attributes = {
                "Theirs": {"DataType": "String", "StringValue": "yes"},
                "n": {"DataType": "Number", "StringValue": "7"},
            }
            sqs.send_message(QueueUrl=url, MessageBody="dressed", MessageAttributes=attributes)
            (dressed,) = await kit.receive(subscription, 1)
            assert dressed.headers == {"Theirs": "yes", "n": "7"}
            await kit.ack(subscription, [bare, dressed])

    kit.run(body())


def test_ours_is_read_by_a_plain_client(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, kit.message(queue, '{"id": 1}', headers={"ce-type": "order", "tenant": "é"}))
            found = kit.client().receive_message(
                QueueUrl=kit.queue_url("orders"), MessageAttributeNames=["All"], WaitTimeSeconds=5
            )
            (message,) = found["Messages"]
            values = {name: a["StringValue"] for name, a in message["MessageAttributes"].items()}
            assert message["Body"] == '{"id": 1}'
            assert values == {"ce-id": "id-1", "ce-type": "order", "tenant": "é"}

    kit.run(body())


def test_bytes_are_marked_for_a_plain_client(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue) as adapter:
            await kit.publish(adapter, kit.message(queue, b"\xff\x00"))
            found = kit.client().receive_message(
                QueueUrl=kit.queue_url("orders"), MessageAttributeNames=["All"], WaitTimeSeconds=5
            )
            (message,) = found["Messages"]
            assert message["MessageAttributes"]["msgbus-body"]["StringValue"] == "base64"
            assert base64.b64decode(message["Body"]) == b"\xff\x00"

    kit.run(body())


def test_events_of_aws_are_plain_payloads(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            for event in EVENTS.values():
                kit.client().send_message(QueueUrl=kit.queue_url("orders"), MessageBody=json.dumps(event))
            received = await kit.receive(await kit.consumer(adapter, source), 2)
            assert sorted(m.body for m in received) == sorted(json.dumps(e).encode() for e in EVENTS.values())
            assert [m.headers for m in received] == [{}, {}]

    kit.run(body())


def test_a_topic_without_raw_delivery_is_unwrapped(kit):
    async def body():
        source = Source(kit.queue())
        async with kit.adapter(source) as adapter:
            sqs, sns = kit.client(), kit.client("sns")
            url = kit.queue_url("orders")
            arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
            topic = sns.create_topic(Name=f"{kit.prefix}-theirs")["TopicArn"]
            sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
            sns.publish(
                TopicArn=topic,
                Message='{"id": 1}',
                MessageAttributes={"tenant": {"DataType": "String", "StringValue": "a"}},
            )
            (received,) = await kit.receive(await kit.consumer(adapter, source), 1)
            assert (received.body, received.headers) == (b'{"id": 1}', {"tenant": "a"})
            assert '"TopicArn"' in received.raw["Body"]

    kit.run(body())


def test_an_existing_queue_is_joined(kit):
    async def body():
        url = kit.client().create_queue(QueueName=f"Legacy_{kit.prefix}")["QueueUrl"]
        joined = kit.queue(queue=f"Legacy_{kit.prefix}")
        async with kit.adapter(Source(joined)) as adapter:
            await kit.publish(adapter, kit.message(joined, "ours"))
            kit.client().send_message(QueueUrl=url, MessageBody="theirs")
            received = await kit.receive(await kit.consumer(adapter, Source(joined)), 2)
            assert {m.body for m in received} == {b"ours", b"theirs"}
        assert (
            "RedrivePolicy" not in kit.client().get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        )

    kit.run(body())


def test_an_existing_topic_and_queue_are_joined(kit):
    async def body():
        sqs, sns = kit.client(), kit.client("sns")
        arn = sns.create_topic(Name=f"Legacy_{kit.prefix}")["TopicArn"]
        sqs.create_queue(QueueName=f"Mail_{kit.prefix}")
        topic = kit.topic(topic=arn, queues={"mail": f"Mail_{kit.prefix}"})
        source = Source(topic, "mail")
        async with kit.adapter(source) as adapter:
            sns.publish(TopicArn=arn, Message="theirs")
            await kit.publish(adapter, kit.message(topic, "ours"))
            received = await kit.receive(await kit.consumer(adapter, source), 2)
            assert {m.body: m.channel for m in received} == {b"theirs": topic.name, b"ours": topic.name}

    kit.run(body())


def test_what_a_policy_allows_already_stays(kit):
    async def body():
        name = f"Shared_{kit.prefix}"
        kit.client().create_queue(QueueName=name)
        one, two = (kit.topic(t, queues={"g": name}) for t in ("one", "two"))
        async with kit.adapter(Source(one, "g"), Source(two, "g")), kit.adapter(Source(one, "g")):
            url = kit.client().get_queue_url(QueueName=name)["QueueUrl"]
            found = kit.client().get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])
            statements = json.loads(found["Attributes"]["Policy"])["Statement"]
            sources = [s["Condition"]["ArnEquals"]["aws:SourceArn"].rpartition(":")[2] for s in statements]
            assert sorted(sources) == [f"{kit.prefix}_2eone", f"{kit.prefix}_2etwo"]

    kit.run(body())


def test_a_filter_policy_keeps_messages_out(kit):
    async def body():
        topic = kit.topic(filter_policy={"ce-type": ["wanted"]})
        source = Source(topic, "g")
        async with kit.adapter(source) as adapter:
            await kit.publish(
                adapter,
                kit.message(topic, "no", headers={"ce-type": "other"}),
                kit.message(topic, "yes", headers={"ce-type": "wanted"}),
            )
            subscription = await kit.consumer(adapter, source)
            assert [m.body for m in await kit.receive(subscription, 1)] == [b"yes"]
            assert list(await subscription.receive(1, 1.0)) == []

    kit.run(body())


def test_a_foreign_message_group_is_the_key(kit):
    async def body():
        source = Source(kit.queue(keyed=True))
        async with kit.adapter(source) as adapter:
            kit.client().send_message(
                QueueUrl=kit.queue_url("orders.fifo"),
                MessageBody="x",
                MessageGroupId="customer-7",
                MessageDeduplicationId="1",
            )
            (received,) = await kit.receive(await kit.consumer(adapter, source), 1)
            assert received.key == "customer-7"

    kit.run(body())
