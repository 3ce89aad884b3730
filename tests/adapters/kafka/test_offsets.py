"""The offset tracker against a naive model, and the metadata codec against every loss it may not make."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msgbus_kafka._offsets import OffsetTracker, Progress, Waiting, decode_progress, encode_progress

offsets = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(
    lambda gaps: [100 + sum(gaps[: i + 1]) + i for i in range(len(gaps))]
)


def covered(progress: Progress) -> set[int]:
    return {offset for first, end in progress.finished for offset in range(first, end)}


@given(polled=offsets, data=st.data())
def test_the_position_is_the_lowest_unfinished_polled_offset(polled, data):
    tracker = OffsetTracker(100)
    waiting, done, received = list(polled), set(), []
    for _ in range(len(polled) * 2):
        if waiting and (len(done) == len(received) or data.draw(st.booleans())):
            received.append(waiting.pop(0))
            assert tracker.receive(received[-1])
        elif left := [o for o in received if o not in done]:
            chosen = data.draw(st.sampled_from(left))
            assert tracker.finish(chosen)
            assert not tracker.finish(chosen)
            done.add(chosen)
        left = [o for o in received if o not in done]
        expected = left[0] if left else (received[-1] + 1 if received else 100)
        assert tracker.position == expected
        assert tracker.unfinished == len(left)
        above = {o for o in done if o > expected}
        assert covered(tracker.progress()) & set(received) == above


@given(polled=offsets, data=st.data())
def test_a_restart_repeats_exactly_what_was_unfinished(polled, data):
    tracker = OffsetTracker(100)
    for offset in polled:
        tracker.receive(offset)
    done = data.draw(st.sets(st.sampled_from(polled)))
    for offset in done:
        tracker.finish(offset)

    position = tracker.position
    text = encode_progress(position, tracker.progress())
    again = OffsetTracker(position, decode_progress(position, text))

    repeated = [offset for offset in polled if offset >= position and again.receive(offset)]
    assert repeated == [offset for offset in polled if offset not in done]
    assert again.position == position


@given(polled=offsets, data=st.data())
def test_a_second_restart_before_anything_is_read_again_forgets_nothing(polled, data):
    tracker = OffsetTracker(100)
    for offset in polled:
        tracker.receive(offset)
    done = data.draw(st.sets(st.sampled_from(polled)))
    for offset in done:
        tracker.finish(offset)
    position = tracker.position
    second = OffsetTracker(position, tracker.progress())

    for offset in [o for o in polled if o >= position][: data.draw(st.integers(0, len(polled)))]:
        second.receive(offset)

    assert second.position == position
    assert covered(second.progress()) == covered(tracker.progress())


runs = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 300)), max_size=300).map(
    lambda pairs: tuple(
        (1000 + sum(a + b for a, b in pairs[:i]) + pairs[i][0], 1000 + sum(a + b for a, b in pairs[: i + 1]))
        for i in range(len(pairs))
    )
)
waits = st.dictionaries(
    st.integers(1000, 100_000),
    st.builds(Waiting, st.integers(0, 1000), st.floats(1.7e9, 1.9e9)),
    max_size=30,
)


@given(finished=runs, waiting=waits)
def test_the_metadata_never_says_more_than_is_true_and_fits(finished, waiting):
    progress = Progress(finished, waiting)
    text = encode_progress(1000, progress)
    read = decode_progress(1000, text)

    assert len(text) <= 4096
    assert covered(read) <= covered(progress)
    for offset, state in read.waiting.items():
        assert state.attempts == waiting[offset].attempts
        assert 0 <= state.due - waiting[offset].due <= 0.002


@given(finished=runs.filter(lambda r: len(r) < 100), waiting=waits)
def test_metadata_that_fits_is_complete(finished, waiting):
    read = decode_progress(1000, encode_progress(1000, Progress(finished, waiting)))
    assert covered(read) == covered(Progress(finished))
    assert read.waiting.keys() == waiting.keys()


@pytest.mark.parametrize("limit", [0, 10, 64, 200])
def test_too_small_a_limit_keeps_the_lowest_offsets(limit):
    finished = tuple((1000 + 7 * i + i % 5, 1000 + 7 * i + i % 5 + 1) for i in range(1, 3000))
    text = encode_progress(1000, Progress(finished), limit)
    read = decode_progress(1000, text).finished

    assert len(text) <= limit
    assert read == finished[: len(read)]


def test_one_stuck_message_and_fifty_thousand_done_take_a_few_bytes():
    tracker = OffsetTracker(0)
    for offset in range(50_001):
        tracker.receive(offset)
    for offset in random.Random(1).sample(range(1, 50_001), 50_000):
        tracker.finish(offset)

    assert tracker.position == 0
    assert len(encode_progress(0, tracker.progress())) < 40


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: "mb1:" + raw.hex()))
@settings(max_examples=300)
def test_foreign_metadata_is_ignored(text):
    decode_progress(5, text)
    assert decode_progress(5, text.removeprefix("mb1:")) == Progress()


def test_offsets_that_nobody_polled_are_not_finished():
    tracker = OffsetTracker(10)
    tracker.receive(10)
    tracker.receive(14)
    assert not tracker.finish(12)
    assert not tracker.finish(9)
    assert not tracker.finish(15)
    assert tracker.finish(10)
    assert tracker.position == 14


def test_the_cost_per_message_does_not_grow_with_what_is_unfinished():
    def seconds_for(count: int) -> float:
        tracker, started = OffsetTracker(0), time.perf_counter()
        for offset in range(count):
            tracker.receive(offset)
        for offset in reversed(range(1, count)):
            tracker.finish(offset)
        return (time.perf_counter() - started) / count

    seconds_for(1000)
    assert min(seconds_for(100_000) for _ in range(3)) < 8 * seconds_for(5_000)


def test_memory_is_given_back_as_the_position_moves():
    tracker = OffsetTracker(0)
    for offset in range(100_000):
        tracker.receive(offset)
        tracker.finish(offset)
    assert len(tracker._offsets) < 5000
    assert tracker.position == 100_000
