"""Dead letters, figures, pages, and what the database does for them."""

from __future__ import annotations

import json
import sqlite3

from msgbus.adapter import Ack, DeadLetter, Nack, Source
from msgbus.errors import SettleError
from msgbus_sqlite._headers import dump_headers


def test_dead_letters_are_moved_read_in_pages_replayed_and_dropped(kit):
    async def body():
        queue, clock = kit.queue(), kit.Clock()
        source = Source(queue)
        async with kit.adapter(queue, clock=clock) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n)) for n in range(10)))
            consumer = await kit.consumer(adapter, source)
            received = await consumer.receive(10, 1)
            await clock.advance(7)
            outcomes = [DeadLetter(message, message.headers | {"why": message.body.decode()}) for message in received]
            assert await consumer.settle(outcomes[::-1]) == [None] * 10
            assert await adapter.browse(source, limit=10) == []
            assert (await adapter.stats(source)).dead == 10

            pages, after = [], None
            while page := await adapter.browse(source.dead_letters, limit=4, after=after):
                pages.append(kit.texts(page))
                after = str(page[-1].position)
            assert pages == [["9", "8", "7", "6"], ["5", "4", "3", "2"], ["1", "0"]]

            grave = await kit.consumer(adapter, source.dead_letters)
            nine, eight = await grave.receive(2, 1)
            assert ("9", "9", clock.now()) == (nine.headers["why"], nine.body.decode(), nine.time)
            assert isinstance((await grave.settle([DeadLetter(nine, {})]))[0], SettleError)
            assert await grave.settle([Ack(nine), Nack(eight)]) == [None, None]
            received = await grave.receive(2, 1)
            assert kit.texts(received) == ["8", "7"]
            await grave.settle([DeadLetter(message, {}) for message in received])
            await grave.aclose()
            grave = await kit.consumer(adapter, source.dead_letters)
            assert kit.texts(await grave.receive(3, 1)) == ["8", "7", "6"]
            assert len(await adapter.browse(source.dead_letters, limit=100)) == 9

    kit.run(body())
    db = sqlite3.connect(kit.path)
    assert db.execute("SELECT count(*) FROM msgbus_message").fetchone() == (9,)
    db.close()


def test_stats_tell_ready_delayed_and_held_apart(kit):
    async def body():
        queue, clock = kit.queue(), kit.Clock()
        source = Source(queue)
        async with kit.adapter(queue, clock=clock) as adapter:
            await kit.publish(adapter, *(kit.message(queue, str(n)) for n in range(4)))
            await clock.advance(5)
            await kit.publish(adapter, kit.message(queue, "late", delay=100))
            consumer = await kit.consumer(adapter, source, lease=30)
            await consumer.receive(1, 1)
            stats = await adapter.stats(source)
            assert (stats.ready, stats.in_flight, stats.delayed, stats.dead) == (3, 1, 1, 0)
            assert (5, clock.now() + 30) == (stats.oldest_age, stats.next_due)
            await clock.advance(200)
            stats = await adapter.stats(source)
            assert (stats.ready, stats.in_flight, stats.delayed, stats.next_due) == (5, 0, 0, None)
            assert len(await adapter.browse(source, limit=10)) == 5

    kit.run(body())


def test_the_queries_that_run_all_the_time_scan_nothing(kit):
    async def body():
        async with kit.adapter(kit.queue()):
            pass

    kit.run(body())
    db = sqlite3.connect(kit.path)
    for sql in (
        "SELECT min(visible_at) FROM msgbus_entry WHERE place = 2",
        "SELECT min(visible_at) FROM msgbus_lane WHERE place = 2",
        "UPDATE msgbus_entry SET visible_at = 0 WHERE place = 2 AND visible_at > 0 AND visible_at <= 5",
        (
            "SELECT e.id, m.body FROM msgbus_entry e JOIN msgbus_message m ON m.id = e.id "
            "WHERE e.place = 2 AND e.visible_at = 0 ORDER BY e.id LIMIT 9"
        ),
        "UPDATE msgbus_entry SET visible_at = 7 WHERE place = 2 AND visible_at = 0 AND id <= 9",
        "SELECT key FROM msgbus_lane WHERE place = 2 AND visible_at = 0 ORDER BY head LIMIT 9",
        (
            "SELECT k.id, m.body FROM msgbus_keyed k LEFT JOIN msgbus_message m ON m.id = k.id "
            "WHERE k.place = 2 AND k.key = 'a' ORDER BY k.id LIMIT 9"
        ),
        "DELETE FROM msgbus_keyed WHERE place = 2 AND key = 'a' AND dead = 5",
    ):
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert plan, sql
        assert all(step.startswith("SEARCH") for step in plan), (sql, plan)
    db.close()


def test_headers_can_be_read_with_plain_sql(kit):
    """The escape hatch: an application's own connection sees a line of names and a line per value."""

    async def body():
        async with kit.adapter(kit.queue()) as adapter:
            await kit.publish(adapter, kit.message(kit.queue(), "x", headers={"a": "1"}, id="7"))

    kit.run(body())
    db = sqlite3.connect(kit.path)
    assert db.execute("SELECT headers, body FROM msgbus_message").fetchall() == [("ce-id\x1fa\n7\n1", b"x")]
    db.close()
    assert json.loads(dump_headers({"ü": "1"})) == {"ü": "1"}
