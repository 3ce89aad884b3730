"""The SQS/SNS adapter keeps the contract: all on two servers, some on two more. The DynamoDB store keeps its own."""

from __future__ import annotations

import asyncio
import base64
import json
import os

import boto3
import pytest
from botocore.config import Config

from msgbus.testing import AdapterContract, Harness, StoreContract, StoreHarness
from scripts.brokers.fixtures import require_broker

_LEASE = 5.0
"""Seconds where the whole kit runs. SQS knows whole seconds only, and leases of two were lost on a slow machine whose
server did not answer for so long."""


def client(broker, service="sqs"):
    return boto3.client(
        service,
        endpoint_url=broker.endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",  # and not those that boto3 found first in this process
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}),
    )


class AwsHarness(Harness):
    """A server, behind a proxy where the check breaks connections: a proxy in this process is not free."""

    def __init__(self, request, server, query="", **options):
        self.broker, self.proxy = server
        needs = request.node.callspec.params["check"].needs
        breaks = {"hook:cut", "hook:pause", "hook:restart", "hook:kill"} & set(needs)
        url = self.broker.url_through(self.proxy) if breaks else self.broker.url
        super().__init__(url=f"{url}&wait=1&timeout=5{query}", **options)

    async def inject_raw(self, address, body, headers):
        await asyncio.to_thread(self._inject, address, body, headers)

    def _inject(self, address, body, headers):
        attributes = {name: {"DataType": "String", "StringValue": value} for name, value in headers.items()}
        attributes["msgbus-body"] = {"DataType": "String", "StringValue": "base64"}
        text = base64.b64encode(body).decode()
        sqs = client(self.broker)
        name = address.name.replace(".", "_2e")
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        sqs.send_message(QueueUrl=url, MessageBody=text, MessageAttributes=attributes)

    async def cut(self):
        await asyncio.to_thread(self.proxy.cut)

    async def pause(self):
        await asyncio.to_thread(self.proxy.stall)

    async def heal(self):
        await asyncio.to_thread(self.proxy.heal)

    def _revive(self, end):
        end()
        self.proxy.cut()  # ElasticMQ serves before it has its queues back, which AWS never does: nobody is to see that
        self.broker.start()
        self.proxy.heal()


class MiniStackHarness(AwsHarness):
    """A server that keeps its messages over a restart, and checks permissions and policies."""

    async def restart(self):
        await asyncio.to_thread(self._revive, self.broker.stop)

    async def fill(self, address):
        await asyncio.to_thread(self._fill, address)

    def _fill(self, address):
        """Queues are never full; they may refuse for other reasons."""
        deny = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["sqs:SendMessage", "sqs:SendMessageBatch"],
            "Resource": "*",
        }
        sqs = client(self.broker)
        url = sqs.get_queue_url(QueueName=address.name.replace(".", "_2e"))["QueueUrl"]
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps({"Statement": [deny]})})


class ElasticMQHarness(AwsHarness):
    """A server that keeps its messages over a restart and when it is killed."""

    async def restart(self):
        await asyncio.to_thread(self._revive, self.broker.stop)

    async def kill(self):
        await asyncio.to_thread(self._revive, self.broker.kill)


@pytest.fixture(scope="module", autouse=True)
def credentials():
    """Those of MiniStack's root. The other servers check none, and boto3 refuses to work without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield


@pytest.fixture(scope="module")
def server(request, credentials):
    broker = require_broker(request.param)
    if request.param == "ministack":
        broker.guarded = True
    with broker, broker.proxy() as proxy:
        yield broker, proxy


@pytest.mark.parametrize("server", ["ministack"], indirect=True)
class TestMiniStack(AdapterContract):
    @pytest.fixture
    def harness(self, request, server):
        return MiniStackHarness(request, server, lease=_LEASE, load=0.05)


@pytest.mark.parametrize("server", ["moto"], indirect=True)
class TestMoto(AdapterContract):
    @pytest.fixture
    def harness(self, request, server):
        return AwsHarness(request, server, lease=_LEASE, load=0.01, patience=2.0)


def only(request, chosen):
    """Run the *chosen* sections and checks: a first look at a server, and what it alone can show."""
    check = request.node.callspec.params["check"]
    if not {check.id, check.section} & chosen and not os.environ.get("MSGBUS_TEST_AWS_FULL"):
        pytest.skip("proved on ministack and moto; MSGBUS_TEST_AWS_FULL=1 tries it here too")


_FIRST_LOOK = {"A2", "A6", "A7", "A20", "A26", "A27", "C1", "C2", "E1", "E6", "F2", "M5", "M11"}
_TOPICS = {"E7", "L1"}
_CROWDS = {"B"}
_RESTARTS = {"C20", "C22", "C23", "J16"}
_KILLS = {"C21", "J14"}


@pytest.mark.parametrize("server", ["fauxqs"], indirect=True)
class TestFauxQS(AdapterContract):
    @pytest.fixture
    def harness(self, request, server):
        if request.node.callspec.params["check"].id == "A6":
            pytest.skip("it refuses characters beyond U+FFFF, which SQS takes")
        only(request, _FIRST_LOOK | _TOPICS | _CROWDS)
        return AwsHarness(request, server, lease=_LEASE, load=0.05)


@pytest.mark.parametrize("server", ["elasticmq"], indirect=True)
class TestElasticMQ(AdapterContract):
    @pytest.fixture
    def harness(self, request, server):
        only(request, _FIRST_LOOK | _RESTARTS | _KILLS)
        return ElasticMQHarness(request, server, "&sns=false", lease=2.0, load=0.05)


@pytest.mark.parametrize("server", ["dynamodb"], indirect=True)
class TestDynamoDB(StoreContract):
    @pytest.fixture
    def harness(self, server):
        return StoreHarness(server[0].url, unit=1.0)
