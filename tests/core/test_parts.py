"""The pure parts: backoff, batching, lanes, attempts and failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgbus import DeadReason, Reject, Retry, RetryAfter
from msgbus._backoff import backoff
from msgbus._batcher import Batcher, Calls
from msgbus._dispatch import in_progress_pause
from msgbus._failure import Failures, attempt_of, read_report
from msgbus._lanes import Lanes
from msgbus._time import SystemClock, seconds
from msgbus.adapter import Address, DeadLetter, Kind, Nack, Received, Source
from msgbus.errors import BatchFailed, DecodeError, PublishFailed, PublishTimeout
from tests.core.support import run

SOURCE = Source(Address(Kind.TOPIC, "ns.orders"), "mail")


def received(key: str = "", **headers: str) -> Received:
    return Received(b"{}", headers, key=key or None)


@given(st.integers(1, 10_000), st.floats(0, 100), st.floats(1, 10), st.floats(0, 1000))
def test_backoff_stays_in_its_bounds(attempt: int, base: float, factor: float, cap: float) -> None:
    """A wait is never negative, never above the cap, and with full jitter never above the formula."""
    full = backoff(attempt, base=base, factor=factor, cap=cap, jitter=False)

    assert 0 <= backoff(attempt, base=base, factor=factor, cap=cap) <= full <= cap


def test_backoff_doubles_up_to_the_cap() -> None:
    """Attempt n waits base * factor ** (n - 1), at most cap."""
    retry = Retry(attempts=9, base=1, factor=2, cap=timedelta(seconds=10), jitter=False)

    assert [retry.delay(n) for n in range(1, 6)] == [1.0, 2.0, 4.0, 8.0, 10.0]


def test_a_duplicate_of_a_running_message_waits_longer_each_time() -> None:
    """It doubles from a second to about a minute; brokers that do not count say 0."""
    assert [in_progress_pause(n) for n in (0, 1, 2, 3, 7, 8, 100)] == [1, 1, 2, 4, 64, 64, 64]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry(attempts=0),
        lambda: Retry(factor=0.5),
        lambda: Retry(base=-1),
        lambda: Retry(cap=float("nan")),
        lambda: RetryAfter(-1),
        lambda: RetryAfter(float("inf")),
        lambda: BatchFailed({}),
        lambda: seconds(-1, "x="),
    ],
)
def test_impossible_policies_are_refused(make: Any) -> None:
    """Numbers that mean nothing are refused with a text that says what is expected."""
    with pytest.raises(ValueError, match="must|takes|needs"):
        make()


def test_a_batcher_gathers_what_comes_together() -> None:
    """What is added in one turn of the loop is flushed together, in order, within the maximum."""
    batches: list[list[int]] = []

    async def flush(batch: list[int]) -> None:
        batches.append(batch)
        await asyncio.sleep(0)

    async def main() -> None:
        batcher = Batcher(flush, max_batch=4)
        batcher.extend(range(3))
        await batcher.drain()
        batcher.extend(range(10))
        await batcher.drain()
        await batcher.drain()

    run(main())

    assert batches == [[0, 1, 2], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_batcher_flushes_as_many_at_once_as_it_may() -> None:
    """in_flight bounds how many batches are flushed at the same time."""
    now = most = 0

    async def flush(_: list[int]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    async def main() -> None:
        batcher = Batcher(flush, max_batch=1, in_flight=3)
        batcher.extend(range(10))
        await batcher.drain()

    run(main())

    assert most == 3


def test_a_batcher_survives_a_failing_flush() -> None:
    """A flush that raises is reported, and what comes after it is flushed all the same."""
    seen: list[int] = []
    reported: list[dict[str, Any]] = []

    async def flush(batch: list[int]) -> None:
        if batch == [0]:
            raise RuntimeError("broken")
        seen.extend(batch)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        batcher = Batcher(flush, max_batch=1)
        batcher.extend([0, 1])
        await batcher.drain()

    run(main())

    assert seen == [1]
    assert len(reported) == 1


def test_calls_give_each_caller_its_own_result() -> None:
    """Concurrent calls become one batch; each caller gets its own item's result, or the batch's exception."""
    batches: list[Sequence[int]] = []

    async def double(items: Sequence[int]) -> Sequence[int]:
        batches.append(items)
        if 13 in items:
            raise ValueError("13")
        return [2 * i for i in items]

    async def main() -> tuple[list[int], list[Any]]:
        calls = Calls(double, max_batch=10)
        good = await asyncio.gather(*(calls(i) for i in range(5)))
        bad = await asyncio.gather(calls(13), calls(1), return_exceptions=True)
        await calls.aclose()
        return good, bad

    good, bad = run(main())

    assert good == [0, 2, 4, 6, 8]
    assert all(isinstance(error, ValueError) for error in bad)
    assert len(batches) == 2


def test_a_cancelled_call_leaves_the_others_alone() -> None:
    """One caller's cancellation does not cancel the batch."""

    async def slow(items: Sequence[int]) -> Sequence[int]:
        await asyncio.sleep(0.01)
        return items

    async def main() -> int:
        calls = Calls(slow, max_batch=10)
        first, second = asyncio.ensure_future(calls(1)), asyncio.ensure_future(calls(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert run(main()) == 2


def test_a_lane_lets_one_message_run_at_a_time() -> None:
    """The second message of a key waits for the first, other keys do not."""
    lanes = Lanes()
    first, second, other = received("a"), received("a"), received("b")

    assert lanes.admit("a", first)
    assert not lanes.admit("a", second)
    assert lanes.admit("b", other)
    assert lanes.done("a") is second
    assert lanes.done("a") is None
    assert len(lanes) == 1


def test_a_closing_lane_gives_back_everything_behind_the_failed_message() -> None:
    """When a message goes back, those behind it follow in order, and so does what arrives before the broker knows."""
    lanes = Lanes()
    head, second, late = received("a"), received("a"), received("a")
    lanes.admit("a", head)
    lanes.admit("a", second)

    assert lanes.close("a") == [second]
    assert not lanes.admit("a", late)
    assert lanes.returned("a") == []
    assert lanes.is_closing("a")
    assert lanes.returned("a") == [late]
    assert lanes.returned("a") == []
    assert not lanes.is_closing("a")
    assert lanes.admit("a", head)


@pytest.mark.parametrize(
    ("deliveries", "header", "attempt"),
    [(0, None, 1), (1, None, 1), (3, None, 3), (1, "2", 3), (2, "2", 4), (1, "x", 1), (1, "-1", 1), (1, "9" * 99, 1)],
)
def test_attempts_are_those_before_this_copy_and_the_brokers_count(
    deliveries: int, header: str | None, attempt: int
) -> None:
    """The header counts attempts made before the copy was published; the broker counts the copy's deliveries."""
    message = Received(b"", {} if header is None else {"msgbus-attempts": header}, deliveries)

    assert attempt_of(message) == attempt


def failures(**options: Any) -> Failures:
    return Failures(SOURCE, "orders", Retry(**options), park=False, clock=SystemClock())


def test_a_failed_message_is_tried_again_later() -> None:
    """Before the last attempt an exception means a delayed nack whose copy counts the attempt."""
    outcome = failures(attempts=3, base=5, jitter=False).decide(received(), ValueError("x"), 1)

    assert isinstance(outcome, Nack)
    assert outcome.delay == 5
    assert outcome.headers == {"msgbus-attempts": "1"}
    assert outcome.counted


def test_retry_after_overrides_the_delay_but_not_the_limit() -> None:
    """RetryAfter says when; how often stays the policy's."""
    again = failures(attempts=3).decide(received(), RetryAfter(7), 1)
    last = failures(attempts=3).decide(received(), RetryAfter(7, "busy"), 3)

    assert isinstance(again, Nack) and again.delay == 7
    assert isinstance(last, DeadLetter)
    assert "busy" in read_report(last.headers).detail


@pytest.mark.parametrize(
    ("error", "options", "reason"),
    [
        (ValueError("x"), {"attempts": 1}, DeadReason.FAILED),
        (KeyError("x"), {"fatal": (LookupError,)}, DeadReason.FATAL),
        (Reject("no such customer"), {}, DeadReason.REJECTED),
    ],
)
def test_what_is_not_tried_again_is_dead_lettered_with_its_reason(
    error: BaseException, options: dict[str, Any], reason: DeadReason
) -> None:
    """The last attempt, a fatal exception and Reject lead to the dead letters."""
    outcome = failures(**options).decide(received(), error, 1)

    assert isinstance(outcome, DeadLetter)
    assert read_report(outcome.headers).reason == reason


def test_a_dead_letter_says_why_when_where_and_how_often() -> None:
    """The report has reason, exception, end of the traceback, attempts, times, source, group and host; no secrets."""
    try:
        raise ConnectionError("amqp://ann:hunter2@host is away " + "x" * 9000)
    except ConnectionError as exc:
        error = exc
    message = Received(b"body", {"x": "y"}, time=1_700_000_000.0)
    outcome = failures(attempts=1).dead_letter(message, error, 5)
    report = read_report(outcome.headers)

    assert (report.reason, report.exception, report.attempts) == ("failed", "ConnectionError", 5)
    assert (report.source, report.group) == ("orders", "mail")
    assert report.first == "2023-11-14T22:13:20.000000Z"
    assert report.last
    assert report.host
    assert len(report.traceback) <= 4001
    assert len(report.detail) <= 1000
    assert "hunter2" not in json.dumps(outcome.headers)
    assert outcome.headers["msgbus-dead"].isascii()
    assert outcome.headers["x"] == "y"
    assert outcome.received.body == b"body"


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"reason": 1, "foreign": 2}', '{"attempts": []}'])
def test_foreign_reports_do_not_break_reading(text: str) -> None:
    """What somebody else wrote into the header is survived."""
    assert read_report({"msgbus-dead": text}).reason is not None


def test_decode_errors_are_told_from_handler_errors() -> None:
    """An undecodable message has a reason of its own."""
    outcome = failures().dead_letter(received(), DecodeError("x"), 1)

    assert read_report(outcome.headers).reason == DeadReason.UNDECODABLE


def test_publish_failed_names_the_first_failure() -> None:
    """The text of PublishFailed says how many and which was the first."""
    error = PublishFailed({3: PublishTimeout("late")}, 10)

    assert str(error) == "1 of 10 messages were not confirmed; the first is number 3: late"
