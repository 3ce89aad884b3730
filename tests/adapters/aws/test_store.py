"""The DynamoDB store's own: its table, and what it says when it cannot work."""

from __future__ import annotations

import threading

import pytest
from botocore.exceptions import ClientError

from msgbus.adapter import AdapterConfig, BusURL, Provision
from msgbus.errors import ConfigError, StoreError, StoreUnavailable, TopologyError
from msgbus.store import Claim, Completion, Done, Granted, InProgress
from msgbus_aws import DynamoDBStore
from scripts.brokers._net import free_port

CLAIM = Claim("scope", "key", "me", "digest", 60.0)


def store(kit, provision=Provision.CREATE, endpoint=None):
    url = f"dynamodb://us-east-1/{kit.prefix}?endpoint={endpoint or kit.broker.endpoint}&timeout=2"
    return DynamoDBStore(BusURL.parse(url), AdapterConfig(provision=provision))


def test_the_table_is_made_and_expires_its_items(moto):
    async def body():
        made = store(moto)
        await made.open()
        await made.open()
        dynamodb = moto.client("dynamodb")
        ttl = dynamodb.describe_time_to_live(TableName=moto.prefix)["TimeToLiveDescription"]
        assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "expires")
        assert await made.claim([CLAIM]) == [Granted()]
        assert await made.complete([Completion(CLAIM, b"reply", 60)]) == [None]
        item = dynamodb.get_item(TableName=moto.prefix, Key={"key": {"S": "scope|key"}})["Item"]
        assert item["expires"]["N"].isdecimal()  # whole seconds, or the table would not expire it
        await made.aclose()
        verified = store(moto, Provision.VERIFY)
        await verified.open()
        assert await verified.claim([Claim("scope", "key", "other", "digest", 60.0)]) == [Done(b"reply")]
        await verified.aclose()

    moto.run(body())


def test_verify_makes_no_table(moto):
    async def body():
        missing = store(moto, Provision.VERIFY)
        with pytest.raises(TopologyError, match=moto.prefix):
            await missing.open()
        await missing.aclose()
        assert moto.prefix not in moto.client("dynamodb").list_tables()["TableNames"]

    moto.run(body())


def test_keys_of_any_length_fit(moto):
    async def body():
        made = store(moto)
        await made.open()
        long = [Claim("s" * 1800, "é" * 500 + end, "me", "digest", 60.0) for end in "ab"]
        assert await made.claim(long) == [Granted()] * 2
        await made.aclose()

    moto.run(body())


def test_claims_for_one_key_keep_their_order_in_a_batch(moto):
    async def body():
        made = store(moto)
        await made.open()
        overtaken = threading.Event()
        calls = []

        def slow_first(**_):
            calls.append(1)
            if len(calls) == 1:
                overtaken.wait(0.3)

        made.raw.meta.events.register("before-call.dynamodb.PutItem", slow_first)
        made.raw.meta.events.register("after-call.dynamodb.PutItem", lambda **_: overtaken.set())
        other = Claim("scope", "key", "other", "digest", 60.0)
        first, second = await made.claim([CLAIM, other])
        assert (first, type(second)) == (Granted(), InProgress)
        await made.aclose()

    moto.run(body())


def test_a_missing_permission_is_an_error_that_names_it(moto):
    async def body():
        made = store(moto)
        await made.open()

        def deny(model, **_):
            response = {"Error": {"Code": "AccessDeniedException", "Message": "no"}}
            raise ClientError(response, model.name)

        made.raw.meta.events.register("before-call.dynamodb", deny)
        with pytest.raises(StoreError, match="needs the permission dynamodb:PutItem"):
            await made.claim([CLAIM])
        await made.aclose()

    moto.run(body())


def test_a_service_that_is_away_says_so(moto):
    async def body():
        away = store(moto, endpoint=f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StoreUnavailable):
            await away.open()
        await away.aclose()

    moto.run(body())


def test_a_wrong_url_is_refused():
    for url, said in (("dynamodb://us-east-1/a b", "table"), ("dynamodb:///t", "region")):
        with pytest.raises(ConfigError, match=said):
            DynamoDBStore(BusURL.parse(url), AdapterConfig())
