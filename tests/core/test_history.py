"""The history checker: each rule catches its violation, and lets pass what is allowed."""

from __future__ import annotations

import signal
import sys

import pytest

from msgbus import Bus, Queue, Retry, Topic
from msgbus.errors import NotSent, PublishTimeout, Reject
from msgbus.testing import WorkerProcess
from msgbus.testing.history import (
    EventKind,
    HistoryError,
    Journal,
    Recorder,
    Subscribed,
    check_history,
    read_history,
)
from tests.core.support import eventually, run

WORK = Subscribed(channel="work", attempts=3)
KEYED = Subscribed(channel="work", attempts=3, ordered=True)
ONCE = Subscribed(channel="work", attempts=3, idempotent=True)


class Script:
    """A history written by hand, a tenth of a second between two events."""

    def __init__(self, path, who="run"):
        self._journal = Journal(path / f"{who}.jsonl", who)
        self._path = path
        self.now = 1000.0

    def write(self, kind, id="", *, at=None, **details):
        self.now = self.now + 0.1 if at is None else at
        self._journal.write(EventKind(kind), at=self.now, id=id, **{"channel": "work" if id else "", **details})

    def publish(self, id, outcome="confirmed", **details):
        self.write("publish", id, run=f"p-{id}", **details)
        self.write(outcome, id, run=f"p-{id}")

    def handle(self, id, end="ok", attempt=1, **details):
        run = f"r-{id}-{self.now}"
        self.write("started", id, run=run, attempt=attempt, **details)
        if end:
            self.write("ended", id, run=run, attempt=attempt, detail=end, **details)

    def check(self, *subscribed):
        return check_history(read_history(self._path), subscribed or (WORK,))

    def rules(self, *subscribed):
        return [violation.rule for violation in self.check(*subscribed).violations]


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


def test_a_good_history_passes(script):
    """Handled, retried, dead-lettered, expired: nothing to complain about."""
    script.publish("m1")
    script.handle("m1", "ValueError")
    script.handle("m1", attempt=2)
    script.publish("poison")
    for attempt in (1, 2, 3):
        script.handle("poison", "ValueError", attempt=attempt)
    script.write("dead", "poison", detail="failed", attempt=3)
    script.publish("old", expires=script.now)
    script.write("dead", "old", detail="expired")
    script.publish("bad", detail="garbage")
    script.write("dead", "bad", detail="undecodable")

    findings = script.check()

    findings.raise_if_broken()
    assert findings.describe() == ""
    assert (findings.counts.confirmed, findings.counts.handled, findings.counts.dead) == (4, 1, 3)


@pytest.mark.parametrize("end", ["ValueError", "cancelled", ""])
def test_a_confirmed_message_that_is_nowhere_is_lost(script, end):
    """Received and failed, cancelled or cut off in the middle is not handled."""
    script.publish("m1")
    script.handle("m1", end)

    findings = script.check()

    assert [v.rule for v in findings.violations] == ["lost"]
    assert findings.counts.lost == 1


def test_a_dead_letter_must_be_found(script):
    """That the broker took it is not enough."""
    script.publish("m1")
    for attempt in (1, 2, 3):
        script.handle("m1", "ValueError", attempt=attempt)
    script.write("settled", "m1", detail="deadletter")
    assert script.rules() == ["lost"]
    assert script.check().account.unsettled() == []

    script.write("dead", "m1", detail="failed")
    assert script.rules() == []


def test_each_group_must_have_it(script):
    """What one group handled is lost to the other that did not."""
    groups = [Subscribed(channel="work", group=name) for name in ("a", "b")]
    script.publish("m1")
    script.handle("m1", group="a")

    (violation,) = script.check(*groups).violations

    assert violation.rule == "lost"
    assert "work@b" in violation.text


@pytest.mark.parametrize("outcome", ["failed", "unknown"])
def test_what_was_not_confirmed_may_be_missing(script, outcome):
    """Only what was confirmed is owed."""
    script.publish("m1", outcome)

    assert script.rules() == []


def test_a_publish_that_never_ended_is_unknown(script):
    """The publisher was killed in the middle: the message may appear, or not."""
    script.write("publish", "m1", run="p1")
    script.write("publish", "m2", run="p2")
    script.handle("m2")

    findings = script.check()

    assert findings.violations == ()
    assert findings.counts.unknown == 2


@pytest.mark.parametrize("kind", ["received", "started", "dead"])
def test_what_was_never_published_is_invented(script, kind):
    """Wherever it appears."""
    script.write(kind, "ghost", run="r1")

    assert "invented" in script.rules()


def test_what_was_not_sent_must_not_appear(script):
    """`NotSent` is a promise."""
    script.publish("m1", "failed")
    script.handle("m1")

    assert script.rules() == ["invented"]


def test_what_was_published_elsewhere_is_invented_here(script):
    """Channels are isolated."""
    script.publish("m1", channel="other")
    script.handle("m1")

    assert script.rules() == ["invented"]


def test_first_deliveries_of_a_key_come_in_order(script):
    """The second message of a key is started before the first one was."""
    script.publish("m1", key="k")
    script.publish("m2", key="k")
    script.handle("m2")
    script.handle("m1")

    (violation,) = script.check(KEYED).violations

    assert violation.rule == "order"
    assert violation.ids == ("m1", "m2")


def test_a_key_waits_for_a_failed_message(script):
    """The second message of a key is started while the first one waits for its retry."""
    script.publish("m1", key="k")
    script.publish("m2", key="k")
    script.handle("m1", "ValueError")
    script.handle("m2")
    script.handle("m1", attempt=2)

    assert script.rules(KEYED) == ["order"]


def test_order_is_per_key_and_for_what_was_confirmed_before(script):
    """Other keys, duplicates, dead letters and unknown publishes disturb no order."""
    script.publish("m1", key="k")
    script.publish("other", key="l")
    script.publish("m2", key="k")
    script.publish("m3", "unknown", key="k")
    script.publish("m4", key="k")
    script.handle("other")
    for attempt in (1, 2, 3):
        script.handle("m1", "ValueError", attempt=attempt)
    script.write("dead", "m1", detail="failed")
    script.handle("m2")
    script.handle("m4")
    script.handle("m2")
    script.handle("m3")

    assert script.rules(KEYED) == []


def test_concurrent_publishes_have_no_order(script):
    """Who published before the other was confirmed cannot claim to be the first."""
    script.write("publish", "m1", run="p1", key="k")
    script.write("publish", "m2", run="p2", key="k")
    script.write("confirmed", "m1", run="p1")
    script.write("confirmed", "m2", run="p2")
    script.handle("m2")
    script.handle("m1")

    assert script.rules(KEYED) == []


def test_attempts_never_exceed_the_policy(script):
    """Neither by the number the handler is told, nor by the number of failures."""
    script.publish("m1")
    script.handle("m1", attempt=4)

    assert script.rules() == ["attempts"]
    assert script.rules(Subscribed(channel="work", attempts=3, slack=1)) == []


def test_a_dead_letter_that_comes_again_is_a_duplicate(script):
    """The broker died before it knew that the message was settled."""
    script.publish("m1")
    for attempt in (1, 2, 3):
        script.handle("m1", "ValueError", attempt=attempt)
    script.write("settled", "m1", detail="deadletter")
    script.handle("m1", "ValueError", attempt=4)
    script.write("dead", "m1", detail="failed")

    assert script.rules() == []


def test_failures_are_counted(script):
    """A broker that does not count exactly may not give more attempts either."""
    script.publish("m1")
    for attempt in (1, 2, 3, 4):
        script.handle("m1", "ValueError", attempt=attempt)
    script.write("dead", "m1", detail="failed")

    assert script.rules(Subscribed(channel="work", attempts=3, slack=20)) == ["attempts"]


def test_a_failure_that_nobody_heard_of_does_not_count(script):
    """The broker was not there to take the dead letter, and the message came again."""
    script.publish("m1")
    for attempt in (1, 2, 3):
        script.handle("m1", "ValueError", attempt=attempt, who="worker-1")
    script.write("settled", "m1", who="worker-1", detail="deadletter refused: SettleError: no connection")
    script.handle("m1", "ValueError", attempt=4, who="worker-2")
    script.write("dead", "m1", detail="failed")
    rough = Subscribed(channel="work", attempts=3, slack=20)

    assert script.rules(rough) == []


def test_nothing_is_handled_after_its_expiry(script):
    """Seconds late is too late."""
    script.publish("m1", expires=1005.0)
    script.handle("m1", at=1008.2)

    assert script.rules() == ["expired"]


def test_a_stopped_worker_cannot_look_at_the_clock(script):
    """It was stopped between its look at the expiry and its first step."""
    script.publish("m1", expires=1005.0)
    script.write("fault", who="worker", at=1004.9, detail="stop")
    script.write("fault", who="worker", at=1007.0, detail="resume")
    script.handle("m1", who="worker")

    assert script.rules() == []


def test_nothing_is_handled_before_its_time(script):
    """Delays are never short."""
    script.publish("m1", due=1003.0)
    script.handle("m1", at=1002.9)

    assert script.rules() == ["early"]


def test_an_idempotent_handler_runs_once(script):
    """Again after success is a violation, after a failure it is not."""
    script.publish("m1")
    script.handle("m1", "ValueError")
    script.handle("m1", attempt=2)
    assert script.rules(ONCE) == []

    script.handle("m1")
    assert script.rules(ONCE) == ["repeated"]
    assert script.rules(WORK) == []
    assert script.check().counts.duplicates == 1


def test_a_worker_killed_before_the_store_knew_is_an_exception(script):
    """Its handler had ended, and its worker died at once; one that was asked to end is no exception."""
    script.publish("m1")
    script.handle("m1", who="a")
    script.write("fault", who="a", detail="kill")
    script.handle("m1", who="b")
    assert script.rules(ONCE) == []

    script.publish("m2")
    script.handle("m2", who="b")
    script.write("fault", who="b", detail="term")
    script.handle("m2", who="c")
    assert script.rules(ONCE) == ["repeated"]


@pytest.mark.parametrize("count", [0, 2])
def test_the_effect_happens_exactly_once(script, count):
    """Not at all, or twice in one good run, is wrong."""
    script.publish("m1")
    script.handle("m1")
    script.write("effect", "m1", attempt=count)

    assert script.rules(ONCE) == ["repeated"]


@pytest.mark.parametrize("reason", ["failed", "rejected", "expired", "undecodable", "crashed", "because"])
def test_a_dead_letter_needs_a_cause(script, reason):
    """A sound message that is buried is as good as lost."""
    script.publish("m1")
    script.write("dead", "m1", detail=reason)

    assert script.rules() == ["explained"]


def test_complaints_are_violations(script):
    """What somebody saw counts."""
    script.write("complaint", detail="a wrong answer")

    assert script.rules() == ["complaint"]


def test_the_offending_history_is_shown(script):
    """The events of the message in question, the faults around it, and nothing else."""
    script.publish("m1", key="k")
    script.publish("other")
    script.handle("other")
    script.write("fault", who="broker", detail="kill")
    script.handle("m1", "ValueError", who="worker-7")

    with pytest.raises(HistoryError) as caught:
        script.check().raise_if_broken()

    text = str(caught.value)
    assert "lost: 1 violations" in text
    assert "worker-7" in text
    assert "kill" in text
    assert "other" not in text


def test_a_history_survives_the_kill_of_its_writer(tmp_path):
    """What was written before SIGKILL is there; half a line at the end is passed over."""
    path = tmp_path / "w.jsonl"
    code = (
        "import sys, time, pathlib; from msgbus.testing.history import Journal, EventKind\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), 'w')\n"
        "for n in range(100): journal.write(EventKind.PUBLISH, id=str(n))\n"
        "print('written', flush=True); time.sleep(60)"
    )
    with WorkerProcess([sys.executable, "-c", code, str(path)]) as worker:
        worker.wait_for_line("written")
        worker.kill()
        assert worker.returncode == -signal.SIGKILL
    path.write_text(path.read_text() + '{"time": 1, "wh')

    assert [event.id for event in read_history(tmp_path)] == [str(n) for n in range(100)]


def test_a_recorder_writes_down_what_a_bus_does(tmp_path):
    """Publishes with their outcome, deliveries, handlers, settlements and dead letters, of queues and groups."""
    run(_record(tmp_path))


async def _record(tmp_path):
    queue, topic = Queue("work", str), Topic("news", str)
    recorder = Recorder(Journal(tmp_path / "a.jsonl", "a"), "app")
    bus = Bus("memory://", namespace="app", consume_middleware=[recorder.middleware])

    @bus.on(queue, retry=Retry(attempts=2, base=0))
    async def handle(payload: str) -> None:
        if payload == "bad":
            raise Reject("no")
        if payload == "poor":
            raise ValueError

    @bus.on(topic, group="g")
    async def read(payload: str) -> None: ...

    async with bus:
        recorder.watch(bus)
        await bus.start()
        for payload in ("good", "bad", "poor"):
            with recorder.publishing("work", payload):
                await bus.send(queue, payload, id=payload)
        with recorder.publishing("news", "n1", key="k"):
            await bus.publish(topic, "n1", id="n1", key="k")
        subscribed = [Subscribed(channel="work", attempts=2), Subscribed(channel="news", group="g")]
        await eventually(lambda: not check_history(read_history(tmp_path), subscribed).account.unsettled())
        assert {v.ids for v in check_history(read_history(tmp_path), subscribed).violations} == {("bad",), ("poor",)}
        await recorder.note_dead(bus, queue)

    for error in (NotSent("away"), PublishTimeout("slow")):
        with pytest.raises(type(error)), recorder.publishing("work", type(error).__name__):
            raise error

    findings = check_history(read_history(tmp_path), subscribed)
    findings.raise_if_broken()
    counts = findings.counts
    assert (counts.confirmed, counts.failed, counts.unknown) == (4, 1, 1)
    assert (counts.handled, counts.dead, counts.redeliveries) == (2, 2, 1)
    fates = findings.account.fates["work"]
    assert [run.started.attempt for run in fates["poor"].runs] == [1, 2]
    assert {id: fates[id].dead[0].detail for id in ("bad", "poor")} == {"bad": "rejected", "poor": "failed"}
    settled = [e.detail for e in findings.account.events if e.kind is EventKind.SETTLED and e.id == "poor"]
    assert settled == ["nack", "deadletter"]
