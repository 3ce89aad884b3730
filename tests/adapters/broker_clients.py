"""Each broker's ordinary client, put in and get out: what the tests of the brokers themselves speak with."""

from __future__ import annotations

import asyncio
import importlib
import time

from scripts.brokers.fixtures import unavailable

__all__ = ["CLIENTS", "library"]

PATIENCE = 15.0


def library(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        unavailable(f"the client {name} is not installed: pip install {name}")


class RabbitMQ:
    """A durable quorum queue."""

    def __init__(self):
        self.kombu = library("kombu")
        self.errors = (OSError, library("kombu.exceptions").OperationalError)

    def _queue(self, connection):
        queue = self.kombu.Queue("q", durable=True, queue_arguments={"x-queue-type": "quorum"})
        queue = queue(connection.channel())
        queue.declare()
        return queue

    def put(self, url, texts, timeout=PATIENCE):
        options = {"confirm_publish": True}
        with self.kombu.Connection(url, transport_options=options, connect_timeout=timeout) as connection:
            self._queue(connection)
            for text in texts:
                connection.Producer().publish(text, routing_key="q", delivery_mode=2)

    def get(self, url):
        with self.kombu.Connection(url) as connection:
            queue, found = self._queue(connection), set()
            # A quorum queue counts what it has before it serves it, right after a restart.
            deadline = time.monotonic() + PATIENCE
            while queue.queue_declare(passive=True).message_count or not found:
                if (message := queue.get()) is not None:
                    found.add(message.payload)
                    message.ack()
                assert time.monotonic() < deadline, f"got only {found}"
            return found


class NATS:
    """A JetStream stream on files."""

    def __init__(self):
        self.nats = library("nats")
        self.errors = (OSError, self.nats.errors.Error)

    def put(self, url, texts, timeout=PATIENCE):
        async def put():
            async with asyncio.timeout(timeout):  # a first connection that is refused is tried for ever
                client = await self._connect(url, timeout)
            await client.jetstream().add_stream(name="S", subjects=["s"])
            for text in texts:
                await client.jetstream().publish("s", text.encode())
            await client.close()

        asyncio.run(put())

    def get(self, url):
        async def get():
            client = await self._connect(url, PATIENCE)
            stream = client.jetstream()
            last = (await stream.stream_info("S")).state.last_seq
            texts = {(await stream.get_msg("S", number)).data.decode() for number in range(1, last + 1)}
            await client.close()
            return texts

        return asyncio.run(get())

    async def _connect(self, url, timeout):
        async def quiet(exc):  # by default it prints a traceback of what is raised all the same
            pass

        return await self.nats.connect(url, connect_timeout=timeout, allow_reconnect=False, error_cb=quiet)


class Kafka:
    """A topic made by the admin client, read by a group."""

    def __init__(self):
        self.aiokafka = library("aiokafka")
        self.admin = library("aiokafka.admin")
        self.errors = (self.aiokafka.errors.KafkaError, TimeoutError)

    def put(self, url, texts, timeout=PATIENCE):
        async def put():
            servers = url.removeprefix("kafka://")
            admin = self.admin.AIOKafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=int(timeout * 1000))
            async with asyncio.timeout(timeout):
                await admin.start()
            if "t" not in await admin.list_topics():
                await admin.create_topics([self.admin.NewTopic("t", num_partitions=4, replication_factor=1)])
            await admin.close()
            async with self.aiokafka.AIOKafkaProducer(bootstrap_servers=servers, acks="all") as producer:
                for text in texts:
                    await producer.send_and_wait("t", text.encode())

        asyncio.run(put())

    def get(self, url):
        async def get():
            servers, texts = url.removeprefix("kafka://"), set()
            options = {"group_id": f"g{time.monotonic_ns()}", "auto_offset_reset": "earliest"}
            async with self.aiokafka.AIOKafkaConsumer("t", bootstrap_servers=servers, **options) as consumer:
                ends = await consumer.end_offsets(consumer.assignment())
                while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                    records = await consumer.getmany(timeout_ms=200)
                    texts |= {record.value.decode() for batch in records.values() for record in batch}
            return texts

        return asyncio.run(get())


def aws_client(url, timeout, service):
    boto3 = library("boto3")
    return boto3.client(
        service,
        endpoint_url=url.partition("endpoint=")[2],
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=boto3.session.Config(connect_timeout=timeout, read_timeout=timeout, retries={"total_max_attempts": 1}),
    )


class SQS:
    """A standard queue; and a topic subscribed by it, where there are topics."""

    def __init__(self):
        self.errors = (library("botocore.exceptions").BotoCoreError,)

    def put(self, url, texts, timeout=PATIENCE):
        sqs = aws_client(url, timeout, "sqs")
        queue = sqs.create_queue(QueueName="q")["QueueUrl"]
        for text in texts:
            sqs.send_message(QueueUrl=queue, MessageBody=text)

    def get(self, url):
        sqs, texts = aws_client(url, PATIENCE, "sqs"), set()
        queue = sqs.get_queue_url(QueueName="q")["QueueUrl"]
        while messages := sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for message in messages:
                texts.add(message["Body"])
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return texts


class SNS(SQS):
    """What is put into a topic comes out of the queue that subscribed to it."""

    def put(self, url, texts, timeout=PATIENCE):
        sqs, sns = aws_client(url, timeout, "sqs"), aws_client(url, timeout, "sns")
        queue = sqs.create_queue(QueueName="q")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        topic = sns.create_topic(Name="t")["TopicArn"]
        raw = {"RawMessageDelivery": "true"}
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=raw)
        for text in texts:
            sns.publish(TopicArn=topic, Message=text)


class DynamoDB:
    """A table of items that have but a key."""

    def __init__(self):
        self.errors = (library("botocore.exceptions").BotoCoreError,)

    def put(self, url, texts, timeout=PATIENCE):
        dynamodb = aws_client(url, timeout, "dynamodb")
        if "msgbus-test" not in dynamodb.list_tables()["TableNames"]:
            dynamodb.create_table(
                TableName="msgbus-test",
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
            )
        for text in texts:
            dynamodb.put_item(TableName="msgbus-test", Item={"key": {"S": text}})

    def get(self, url):
        items = aws_client(url, PATIENCE, "dynamodb").scan(TableName="msgbus-test")["Items"]
        return {item["key"]["S"] for item in items}


class Redis:
    """A set."""

    def __init__(self):
        self.redis = library("redis")
        self.errors = (self.redis.exceptions.RedisError,)

    def put(self, url, texts, timeout=PATIENCE):
        with self.redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout) as client:
            client.sadd("s", *texts)

    def get(self, url):
        with self.redis.Redis.from_url(url, decode_responses=True) as client:
            return client.smembers("s")


class Postgres:
    """A table."""

    def __init__(self):
        self.psycopg = library("psycopg")
        self.errors = (self.psycopg.Error,)

    def put(self, url, texts, timeout=PATIENCE):
        with self.psycopg.connect(url, connect_timeout=int(timeout)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (x text)")
            for text in texts:
                connection.execute("INSERT INTO t VALUES (%s)", (text,))

    def get(self, url):
        with self.psycopg.connect(url) as connection:
            return {row[0] for row in connection.execute("SELECT x FROM t")}


CLIENTS = {
    "rabbitmq": RabbitMQ,
    "nats": NATS,
    "kafka": Kafka,
    "elasticmq": SQS,
    "ministack": SNS,
    "fauxqs": SNS,
    "moto": SNS,
    "dynamodb": DynamoDB,
    "redis": Redis,
    "postgres": Postgres,
}
