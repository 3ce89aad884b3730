"""One message at a time: what `post` takes, and what it says of each."""

from __future__ import annotations

import asyncio

from msgbus.adapter import CORRELATION_ID, ERROR, ID, REPLY_TO, Ack, Address, Kind, Source, SubscribeOptions
from msgbus.errors import ClosedError, NoResponders, PublishTimeout, Unroutable
from tests.adapters.posts import Posts

REQUEST = Address(Kind.REQUEST, "ask")


def test_what_is_posted_is_stored_in_order_between_what_is_published(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            posts = Posts(adapter)
            assert all(posts(kit.message(queue, f"{i}")) for i in range(50))
            assert not posts.said, "nothing is confirmed before it is sent"
            await kit.publish(adapter, *(kit.message(queue, f"{i}") for i in range(50, 60)))
            assert posts(kit.message(queue, "60"))
            await kit.until(lambda: len(posts.said) == 51)
            consumer = await kit.consumer(adapter, Source(queue), prefetch=100)
            assert set(posts.said.values()) == {None}
            assert kit.texts(await kit.receive(consumer, 61)) == [f"{i}" for i in range(61)]

    kit.run(body())


def test_a_post_is_refused_by_itself(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            posts = Posts(adapter)
            assert posts(kit.message(kit.queue("missing"), "x", id="lost"))
            assert posts(kit.message(queue, "x", id="kept"))
            assert posts(kit.message(REQUEST, "x", id="asked"))
            await kit.until(lambda: len(posts.said) == 3)
            assert posts.said["kept"] is None
            assert type(posts.said["lost"]) is Unroutable
            assert type(posts.said["asked"]) is NoResponders

    kit.run(body())


def test_what_publish_would_explain_is_not_taken(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            posts = Posts(adapter)
            assert not posts(kit.message(queue, "x", headers={"Nats-Rollup": "all"}))
            assert not posts(kit.message(queue, "x" * (adapter.capabilities.max_body + 1)))
            assert not posts(kit.message(Address(Kind.REPLY, "no subject"), "x"))
            assert posts(kit.message(queue, "x", id="last"))
            await kit.until(lambda: "last" in posts.said)
        assert not posts(kit.message(queue, "x"))
        assert list(posts.said) == ["last"]

    kit.run(body())


def test_core_messages_are_confirmed_once_the_server_has_read_them(kit):
    async def body():
        async with kit.adapter(REQUEST, Source(REQUEST)) as server, kit.adapter(REQUEST) as client:
            await server.subscribe(Source(REQUEST), SubscribeOptions())
            posts = Posts(client)
            for i in range(20):
                assert posts(kit.message(REQUEST, "x", id=f"{i}"))
                await asyncio.sleep(0.002)
            await kit.until(lambda: len(posts.said) == 20)
            assert set(posts.said.values()) == {None}

    kit.run(body())


def test_a_lost_connection_is_said_of_every_post(own_kit):
    kit = own_kit

    async def body(proxy):
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue), url=kit.broker.url_through(proxy)) as adapter:
            posts = Posts(adapter)
            await asyncio.to_thread(proxy.stall)
            for i in range(3):
                assert posts(kit.message(queue, f"{i}", id=f"{i}"))
            await asyncio.to_thread(proxy.cut)
            await kit.until(lambda: len(posts.said) == 3)
            assert all(isinstance(error, PublishTimeout) and error.retryable for error in posts.said.values())
            assert not posts(kit.message(queue, "away")), "there is no connection"
            await asyncio.to_thread(proxy.heal)
            await kit.until(lambda: adapter.health.ok)
            assert posts(kit.message(queue, "3", id="3"))
            await kit.until(lambda: posts.said.get("3", "nothing") is None)

    with kit.broker.proxy() as proxy:
        kit.run(body(proxy))


def test_a_server_that_says_nothing_is_given_up(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue), query="&timeout=0.5") as adapter:
            posts = Posts(adapter)
            adapter.raw._reader.listen(adapter._confirms._prefix.encode(), rb"\d+", lambda _: None)
            assert posts(kit.message(queue, "x", id="1"))
            await kit.until(lambda: "1" in posts.said)
            assert isinstance(posts.said["1"], PublishTimeout)

    kit.run(body())


def test_requests_go_straight_to_who_is_idle_and_are_given_back_by_who_leaves(kit):
    """`deliver` gets a request as it comes; what it leaves is received; what nobody has settled goes to another."""

    async def body():
        source = Source(REQUEST)
        async with kit.adapter(REQUEST, source) as server, kit.adapter(REQUEST) as client:
            one = await kit.consumer(server, source)
            taken = []

            def deliver(received):
                taken.append(received)
                return len(taken) == 1

            one.deliver = deliver
            answers = await kit.consumer(client, Source(Address(Kind.REPLY, "answers")))
            for text in "abc":
                message = kit.message(REQUEST, text, headers={REPLY_TO: answers.address, CORRELATION_ID: text})
                await kit.publish(client, message)
            left = await kit.receive(one, 2)
            assert (kit.texts(taken[:1]), kit.texts(left)) == (["a"], ["b", "c"])
            assert len(taken) == 2, "what waits must not be overtaken"
            assert list(await one.settle([Ack(left[0])])) == [None]
            two = await kit.consumer(server, source)
            await one.aclose()
            assert sorted(kit.texts(await kit.receive(two, 2))) == ["a", "c"]

    kit.run(body())


def test_delivered_requests_count_against_the_limit(kit):
    async def body():
        source = Source(REQUEST)
        async with kit.adapter(REQUEST, source) as server, kit.adapter(REQUEST) as client:
            consumer = await kit.consumer(server, source)
            taken = []

            def deliver(received):
                taken.append(received)
                return len(taken) <= 2

            consumer.deliver = deliver
            receiving = asyncio.create_task(consumer.receive(3, 10))
            await asyncio.sleep(0)
            await kit.publish(client, *(kit.message(REQUEST, text) for text in "abcdef"))
            await kit.until(lambda: len(taken) >= 3)
            assert kit.texts(await receiving) == ["c"]

    kit.run(body())


def test_an_answer_that_is_delivered_is_settled(kit):
    async def body():
        async with kit.adapter() as client, kit.adapter() as server:
            answers = await kit.consumer(client, Source(Address(Kind.REPLY, "answers")))
            got = []
            answers.deliver = lambda received: got.append(received) is None
            target = Address(Kind.REPLY, answers.address)
            await kit.publish(server, kit.message(target, "x", id="1", headers={CORRELATION_ID: "1"}))
            await kit.until(lambda: got)
            assert got[0].headers == {ID: "1", CORRELATION_ID: "1"}
            assert not answers._live
            assert not await answers.receive(1, 0.05)

    kit.run(body())


def test_a_closed_adapter_publishes_nothing(kit):
    async def body():
        async with kit.adapter() as adapter:
            pass
        try:
            await adapter.publish([kit.message(kit.queue(), "x")])
        except ClosedError:
            assert not adapter.post(kit.message(kit.queue(), "x"), lambda _: None)
        else:
            raise AssertionError("it published")

    kit.run(body())


def test_what_comes_one_by_one_is_written_at_once_and_what_comes_together_together(kit):
    async def body():
        queue = kit.queue()
        async with kit.adapter(queue, Source(queue)) as adapter:
            posts, client = Posts(adapter), adapter.raw
            written, transport = [], client._transport
            write, transport.writelines = transport.writelines, lambda parts: (written.append(parts), write(parts))
            client._reader._arrived = lambda: None  # how many reads it takes to get several answers is luck

            async def post(count):
                client._arrived()
                written.clear()
                for _ in range(count):
                    assert posts(kit.message(queue, "x"))
                at_once = b"".join(written and written[0]).count(b"HPUB")
                before = len(posts.said)
                await kit.until(lambda: len(posts.said) == before + count)
                return at_once

            assert await post(1) == 1
            assert await post(1) == 1
            assert await post(5) == 1, "nobody knew that more would come"
            assert await post(5) == 0, "more than one came the last time"
            assert b"".join(written[0]).count(b"HPUB") == 5
            assert await post(1) == 0
            assert await post(1) == 1

    kit.run(body())


def test_an_answer_is_decoded_for_who_asks(kit):
    async def body():
        async with kit.adapter() as client, kit.adapter() as server:
            answers = await kit.consumer(client, Source(Address(Kind.REPLY, "answers")))
            target = Address(Kind.REPLY, answers.address)
            plain = {CORRELATION_ID: "7", "x": "msgbus-error"}
            failed = {CORRELATION_ID: "8", ERROR: "{}"}
            odd = {CORRELATION_ID: " 9 "}
            for headers in plain, failed, odd, {}:
                await kit.publish(server, kit.message(target, "x", headers=headers))
            got = await kit.receive(answers, 4)
            assert [received.correlation for received in got] == ["7", None, None, None]
            assert [received.plain for received in got] == [True, False, False, False]
            for received, headers in zip(got, (plain, failed, odd, {}), strict=True):
                assert headers.items() <= received.headers.items()

    kit.run(body())


def test_a_request_has_nats_pys_message(kit):
    async def body():
        source = Source(REQUEST)
        async with kit.adapter(REQUEST, source) as server, kit.adapter(REQUEST) as client:
            consumer = await kit.consumer(server, source)
            await kit.publish(client, kit.message(REQUEST, "x", headers={"mine": "1"}))
            (received,) = await kit.receive(consumer, 1)
            raw = received.raw
            assert (raw.data, raw.headers["mine"], raw.reply) == (b"x", "1", received.headers[REPLY_TO])
            assert raw.subject.endswith(".ask")

    kit.run(body())
