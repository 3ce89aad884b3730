"""What the documentation says that a process needs, on a server that checks it: that is enough, and nothing less is."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from msgbus.adapter import DEAD, Ack, Address, DeadLetter, Kind, Nack, Provision, Source
from msgbus.errors import MsgbusError
from scripts.brokers.fixtures import require_broker
from tests.adapters.aws.conftest import Kit

DOCS = Path(__file__).parents[3] / "docs" / "adapters" / "aws.md"


def documented():
    """What each row of the table grants, by the beginning of its first cell."""
    table = DOCS.read_text().partition("| To | Permissions | On |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        to, permissions, _ = (cell.strip() for cell in row.strip("|").split("|"))
        yield to.partition(",")[0].partition(" (")[0], set(re.findall(r"`((?:sqs|sns):\w+)`", permissions))


ROWS = dict(documented())
NOT_NEEDED_HERE = {
    "publish to a topic": {"sns:GetTopicAttributes"},  # it is, with the account in the URL
    "dead-letter": ROWS["consume"],  # nobody dead-letters without consuming
    "list": ROWS["consume"],
    "send requests": {"sqs:ListQueues", "sqs:ListQueueTags", "sqs:TagQueue"},  # sweeping; AWS asks for the last one
}


class GuardedKit(Kit):
    """A server that checks permissions."""

    def __init__(self, broker, monkeypatch):
        super().__init__(broker)
        self._env = monkeypatch.setenv
        self.sign_in("test", "test")

    def sign_in(self, key, secret):
        self._env("AWS_ACCESS_KEY_ID", key)
        self._env("AWS_SECRET_ACCESS_KEY", secret)

    @asynccontextmanager
    async def user(self, actions, provision=Provision.SKIP):
        """The adapter of somebody who may do just that."""
        iam, name = self.client("iam"), f"{self.prefix}-{len(actions)}-{self._next()}"
        iam.create_user(UserName=name)
        # To AWS a batch is many of the same; to this server it is an action of its own.
        statement = {"Effect": "Allow", "Action": [*actions, *(f"{a}Batch" for a in actions)], "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        self.sign_in(key["AccessKeyId"], key["SecretAccessKey"])
        try:
            async with self.adapter(provision=provision) as adapter:
                self.sign_in("test", "test")
                yield adapter
        finally:
            self.sign_in("test", "test")

    def _next(self):
        self._count += 1
        return self._count


@pytest.fixture(scope="module")
def guarded():
    broker = require_broker("ministack")
    broker.guarded = True
    with broker:
        yield broker


def sure(results):
    """Raise the first error."""
    for error in results:
        if error is not None:
            raise error


async def publish(kit, actions, to):
    async with kit.user(actions) as adapter:
        sure(await adapter.publish([kit.message(to)]))


async def to_a_queue(kit, actions, source):
    await publish(kit, actions, source.address)


async def to_a_topic(kit, actions, _):
    source = Source(kit.topic(f"t{kit._next()}"), "group")
    async with kit.adapter(source, provision=Provision.CREATE) as root:
        await publish(kit, actions, source.address)
        # The queue's policy lets the topic in.
        await kit.receive(await kit.consumer(root, source), 1)


async def consume(kit, actions, source):
    async with kit.adapter() as root, kit.user(actions) as adapter:
        await kit.publish(root, kit.message(source.address))
        subscription = await kit.consumer(adapter, source)
        (first,) = await kit.receive(subscription, 1)
        sure(await subscription.settle([Nack(first)]))
        (again,) = await kit.receive(subscription, 1)
        sure(await subscription.settle([Ack(again)]))


async def bury(kit, actions, source):
    async with kit.adapter() as root, kit.user(actions | ROWS["consume"]) as adapter:
        await kit.publish(root, kit.message(source.address))
        subscription = await kit.consumer(adapter, source)
        (received,) = await kit.receive(subscription, 1)
        sure(await subscription.settle([DeadLetter(received, {**received.headers, DEAD: "{}"})]))


async def replay(kit, actions, source):
    await bury(kit, ROWS["dead-letter"], source)
    async with kit.user(actions | ROWS["consume"]) as adapter:
        await adapter.stats(source.dead_letters)
        subscription = await kit.consumer(adapter, source.dead_letters)
        (dead,) = await kit.receive(subscription, 1)
        sure(await adapter.publish([kit.message(source)]))
        sure(await subscription.settle([Ack(dead)]))


async def stats(kit, actions, source):
    async with kit.user(actions) as adapter:
        await adapter.stats(source)


async def ask(kit, actions, _):
    async with kit.adapter() as root, kit.user(actions) as adapter:
        answers = await kit.consumer(adapter, Source(Address(Kind.REPLY, "kit")))
        await kit.publish(root, kit.message(Address(Kind.REPLY, answers.address)))
        (answer,) = await kit.receive(answers, 1)
        sure(await answers.settle([Ack(answer)]))
        await answers.aclose()
        assert not [u for u in kit.client().list_queues().get("QueueUrls", ()) if u.endswith(answers.address)], (
            "no sqs:DeleteQueue"
        )


def fresh(kit):
    return [Source(kit.queue(f"q{kit._next()}")), Source(kit.topic(f"t{kit._next()}"), "group")]


async def create(kit, actions, _):
    async with kit.user(actions, Provision.CREATE) as adapter:
        await adapter.declare(kit.topology(*fresh(kit)))


async def verify(kit, actions, _):
    sources = fresh(kit)
    async with kit.adapter(*sources), kit.user(actions, Provision.VERIFY) as adapter:
        await adapter.declare(kit.topology(*sources))


async def remove(kit, actions, _):
    sources = fresh(kit)
    async with kit.adapter(*sources), kit.user(actions) as adapter:
        for source in sources:
            await adapter.remove(source)


OPERATIONS = {
    "publish to a queue": to_a_queue,
    "publish to a topic": to_a_topic,
    "consume": consume,
    "dead-letter": bury,
    "list": replay,
    "`stats`": stats,
    "send requests": ask,
    "create what is missing": create,
    "check what exists": verify,
    "remove a group or queue": remove,
}


@pytest.mark.parametrize("to", OPERATIONS)
def test_what_is_documented_is_enough_and_no_less_is(guarded, monkeypatch, to):
    kit = GuardedKit(guarded, monkeypatch)
    source = Source(kit.queue())
    run, actions, others = OPERATIONS[to], ROWS[to], NOT_NEEDED_HERE.get(to, set())

    async def body():
        async with kit.adapter(source):
            pass
        await run(kit, actions, source)
        for action in actions - others:
            with pytest.raises((MsgbusError, AssertionError), match=action):
                await run(kit, actions - {action}, source)

    kit.run(body(), within=120)
