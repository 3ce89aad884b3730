"""The inbox against a naive model: order, delays and lanes, in every interleaving that Hypothesis thinks of."""

from __future__ import annotations

from types import SimpleNamespace

from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from msgbus.adapter import ATTEMPTS, EXPIRES, ID
from msgbus_kafka._inbox import Entry, Inbox
from msgbus_kafka._partition import Partition

TP = TopicPartition("t", 0)


def record(offset, key=None):
    return SimpleNamespace(offset=offset, timestamp=0, timestamp_type=0, key=key, value=b"%d" % offset, headers=())


def entry(inbox, partition, offset, key=None, due=0.0):
    made = Entry(record(offset, key)).arrived(next(inbox.number), partition, "t")
    made.due = due
    return made


def returned(old, due=0.0):
    again = old.again(old.headers)
    again.due = due
    old.settled = True
    return again


@given(data=st.data())
def test_a_key_never_overtakes_itself_and_nothing_is_early_or_lost(data):
    inbox, partition, now = Inbox(keyed=True), Partition(TP, 0, None), 0.0
    out, done, offset = [], [], 0
    for _ in range(data.draw(st.integers(1, 60))):
        step = data.draw(st.sampled_from(["fetch", "take", "back", "ack", "time"]))
        if step == "fetch":
            for _ in range(data.draw(st.integers(1, 4))):
                inbox.put(entry(inbox, partition, offset, data.draw(st.sampled_from([b"a", b"b", None]))))
                offset += 1
        elif step == "take":
            taken = inbox.take(data.draw(st.integers(1, 5)), now)
            assert all(e.due == 0 or e.due <= now for e in taken)
            out += taken
        elif step == "back" and out:
            # As the core does: a message goes back together with those of its key that were received after it.
            first = data.draw(st.sampled_from(out))
            delay = data.draw(st.sampled_from([0.0, 1.0, 5.0]))
            for old in [e for e in out if e is first or (e.key == first.key is not None and e.number > first.number)]:
                out.remove(old)
                inbox.put_back(returned(old, now + delay if old is first and delay else 0.0))
        elif step == "ack" and out:
            heads = [e for e in out if e.key is None or all(o.key != e.key or o.number >= e.number for o in out)]
            chosen = data.draw(st.sampled_from(heads))
            out.remove(chosen)
            done.append(chosen)
        else:
            now += data.draw(st.sampled_from([0.5, 1.0, 6.0]))
    while len(done) < offset:
        now += 10.0
        out += inbox.take(100, now)
        done += sorted(out, key=lambda e: e.number)
        out.clear()

    assert sorted(e.offset for e in done) == list(range(offset))
    for key in ("a", "b"):
        of_key = [e.offset for e in done if e.key == key]
        assert of_key == sorted(of_key)
    assert len(inbox) == 0
    assert inbox.take(10, now + 100) == []
    assert (partition._waiting, partition._waiting_bytes) == (0, 0)


def test_a_delayed_head_holds_back_its_key_and_no_other():
    inbox, partition = Inbox(keyed=True), Partition(TP, 0, None)
    for offset, key in enumerate([b"slow", b"slow", b"quick"]):
        inbox.put(entry(inbox, partition, offset, key))
    (head,) = inbox.take(1, now=0.0)
    inbox.put_back(returned(head, due=5.0))

    assert [e.offset for e in inbox.take(10, now=4.9)] == [2]
    assert [e.offset for e in inbox.take(10, now=5.0)] == [0, 1]


def test_a_full_hand_leaves_the_rest_of_a_lane_for_the_next():
    inbox, partition = Inbox(keyed=True), Partition(TP, 0, None)
    for offset in range(5):
        inbox.put(entry(inbox, partition, offset, b"k"))
    for old in inbox.take(5, now=0.0):
        inbox.put_back(returned(old))

    assert [[e.offset for e in inbox.take(2, now=0.0)] for _ in range(3)] == [[0, 1], [2, 3], [4]]


def test_without_keys_what_comes_back_passes_what_is_fetched_later():
    inbox, partition = Inbox(keyed=False), Partition(TP, 0, None)
    for offset in range(4):
        inbox.put(entry(inbox, partition, offset))
    first = inbox.take(2, now=0.0)
    for old in reversed(first):
        inbox.put_back(returned(old))

    assert [e.offset for e in inbox.take(10, now=0.0)] == [0, 1, 2, 3]


def test_what_waits_comes_when_it_is_due_whatever_came_before():
    inbox, partition = Inbox(keyed=False), Partition(TP, 0, None)
    for offset, due in enumerate([30.0, 10.0, 20.0]):
        inbox.put(entry(inbox, partition, offset, due=due))

    assert [[e.offset for e in inbox.take(10, now)] for now in (9.9, 10.0, 25.0, 30.0)] == [[], [1], [2], [0]]


def test_the_entries_of_a_lost_partition_are_forgotten():
    inbox, kept, lost = Inbox(keyed=True), Partition(TP, 0, None), Partition(TopicPartition("t", 1), 0, None)
    for partition in (kept, lost):
        fresh, laned = entry(inbox, partition, 0, b"x"), entry(inbox, partition, 1, partition.tp.partition.to_bytes())
        inbox.put(fresh)
        inbox.put_back(laned)
        inbox.put(entry(inbox, partition, 2, due=5.0))
    lost.live = False
    inbox.drop_dead()

    assert {e.partition for e in inbox.take(10, now=9.0)} == {kept}
    assert inbox.take(10, now=9.0) == []


def test_an_entry_vouches_only_for_what_was_not_tried_before_and_does_not_expire():
    def made(*headers):
        fetched = record(7)
        fetched.headers = list(headers)
        return Entry(fetched).arrived(0, Partition(TP, 0, None), "t")

    assert made().plain
    assert made((ID, b"1"), ("mine", b"\xff")).plain
    assert not made((ID, b"1"), (ATTEMPTS, b"2")).plain
    assert not made((EXPIRES, b"2030-01-01T00:00:00Z")).plain
    assert not made((ID, b"1")).again({ID: "1"}).plain


def test_the_library_s_record_is_made_again_as_it_was():
    pairs = [("same", b"1"), ("same", b"\xff"), ("null", None)]
    for key, value, headers in [(b"\xff", b"body", pairs), (None, None, pairs[1:]), (b"", b"", [])]:
        fetched = SimpleNamespace(offset=7, timestamp=5, timestamp_type=1, key=key, value=value, headers=headers)
        entry = Entry(fetched).arrived(0, Partition(TP, 0, None), "t")
        for found in (entry.raw, entry.again({}).raw):
            assert (found.topic, found.partition, found.offset, found.timestamp) == ("t", 0, 7, 5)
            assert (found.key, found.value, found.headers) == (key, value, tuple(headers))
            assert (found.timestamp_type, found.serialized_value_size) == (1, -1 if value is None else len(value))
        assert entry.headers == {name: (text or b"").decode("utf-8", "surrogateescape") for name, text in headers}
