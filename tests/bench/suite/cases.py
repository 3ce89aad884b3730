"""The cases: which work is measured, with how much of it, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.suite import work
from tests.bench.suite.work import KIB, Run

__all__ = ["CASES", "Case", "find"]


@dataclass(frozen=True)
class Case:
    """One kind of work.

    Attributes:
        name: What ``CASE=`` calls it.
        title: What the report calls it.
        run: The work.
        unit: Of the figure.
        more_is_better: Whether a higher figure is the better one.
        size: Bytes of a body.
        warm: Messages in the first round, which warms up and is not counted.
        fewest: Messages at least in a measured round.
        most: Messages at most in a measured round.
        buffered: Whether what a contender holds when the clock begins counts: a round then takes up to three times as
            long to have five times as many messages.
        fixed: Messages of every measured round, instead of as many as take the time.
        rounds: Measured rounds at most; 0 for as many as everything has.
        part: What varies inside the case.
        needs: What a contender must be able to do.
        before: Work that another process does first.
        paced: Whether the messages come at half the rate that the slowest contender can carry.
        headline: Whether all contenders take part, and a run takes its full time.
        alone: Whether only msgbus takes part: how its own cost grows.
    """

    name: str
    title: str
    run: Run
    unit: str = "messages/s"
    more_is_better: bool = True
    size: int = KIB
    warm: int = 100
    fewest: int = 60
    most: int = 50_000
    buffered: bool = False
    fixed: int = 0
    rounds: int = 0
    part: int = 0
    needs: frozenset[str] = frozenset()
    before: Run | None = None
    paced: bool = False
    headline: bool = False
    alone: bool = False

    @property
    def weight(self) -> float:
        """What part of the time of a headline's run one of this case takes."""
        return 1.0 if self.headline else 0.5


def _throughput() -> list[Case]:
    waits, many = frozenset({"waits"}), frozenset({"batches"})
    sizes = ((100, "100B"), (KIB, "1KiB"), (64 * KIB, "64KiB"))
    most = {64 * KIB: 2_000}
    return [
        Case("publish-one", "publish, one at a time", work.publish_one, headline=True),
        Case("publish-tasks", "publish, from 100 tasks", work.publish_from_tasks, needs=frozenset({"tasks"})),
        *(
            Case(
                f"publish/{t}",
                f"publish, pipelined, {t}",
                work.publish_many,
                size=s,
                warm=50 if s > KIB else 100,
                fewest=30 if s > KIB else 60,
                most=most.get(s, 50_000),
                headline=s == KIB,
            )
            for s, t in sizes
        ),
        *(
            Case(
                f"consume/{t}",
                f"drain a backlog, {t}",
                work.drain(),
                size=s,
                warm=50 if s > KIB else 100,
                fewest=30 if s > KIB else 60,
                most=most.get(s, 50_000),
                buffered=True,
                headline=s == KIB,
            )
            for s, t in sizes
        ),
        Case(
            "consume-batch",
            "drain, handlers of batches",
            work.drain(batch=100),
            needs=many,
            warm=500,
            fewest=500,
            buffered=True,
        ),
        Case("consume-1ms", "drain, handlers of 1 ms", work.drain(wait=0.001), fewest=500, needs=waits),
        Case("consume-10ms", "drain, handlers of 10 ms", work.drain(wait=0.01), fewest=300, needs=waits, headline=True),
        Case("end-to-end", "publish and consume at once", work.end_to_end, headline=True),
    ]


def _behaviour() -> list[Case]:
    asks, keys = frozenset({"requests"}), frozenset({"keys"})
    one = frozenset({"partitions"})
    return [
        Case("request", "requests, one at a time", work.requests(1), "requests/s", warm=50, fewest=30, needs=asks),
        *(
            Case(f"request-{n}", f"requests, {n} in flight", work.requests(n), "requests/s", needs=asks)
            for n in (100, 500)
        ),
        *(
            Case(
                f"keyed/{n}",
                f"in order per key, {n:,} keys",
                work.keyed(least=0.001, most=0.001),
                fewest=500,
                part=n,
                needs=keys,
            )
            for n in (10, 100, 1000)
        ),
        *(
            Case(
                f"one-partition/{n}",
                f"10,000 of 0 to 5 ms, one partition, {n:,} keys, 100 at once",
                work.keyed(least=0, most=0.005, concurrency=100, partitions=1),
                fixed=10_000,
                size=100,
                part=n,
                needs=keys | one,
            )
            for n in (20, 100, 1000, 10_000)
        ),
        *(
            Case(
                f"slow/{n}",
                f"handlers of 10 ms, one partition, {n} at once",
                work.drain(wait=0.01, concurrency=n, partitions=1),
                warm=10 * n,
                needs=one,
                alone=True,
            )
            for n in (1, 64)
        ),
        Case(
            "retries",
            "drain, every tenth fails once",
            work.drain(failing=10),
            needs=frozenset({"retries"}),
            headline=True,
        ),
        Case("latency", "latency at half load, p50", work.latency, "ms", more_is_better=False, paced=True, fewest=500),
    ]


def _costs() -> list[Case]:
    return [
        Case(
            "memory",
            "memory with 100,000 waiting",
            work.peak_memory,
            "MiB",
            more_is_better=False,
            fixed=1000,
            warm=0,
            rounds=1,
            needs=frozenset({"waits", "processes", "backlogs"}),
            before=work.fill_backlog,
        ),
        Case("import", "import, CPU time", work.importing(all_of_it=True), "ms", more_is_better=False, fixed=1, warm=1),
        Case(
            "import-alone",
            "import the package alone, CPU time",
            work.importing(all_of_it=False),
            "ms",
            more_is_better=False,
            fixed=1,
            warm=1,
            needs=frozenset({"embedded"}),
            alone=True,
        ),
        Case(
            "dispatch",
            "dispatch, without a broker",
            work.dispatch,
            "us/message",
            more_is_better=False,
            fixed=50_000,
            warm=5_000,
            needs=frozenset({"embedded"}),
            alone=True,
        ),
        Case(
            "start",
            "start until a waiting message is handled",
            work.start,
            "ms",
            more_is_better=False,
            fixed=1,
            warm=1,
        ),
        *(
            Case(
                f"subscriptions/{n}",
                f"{n} subscriptions",
                work.subscriptions,
                fixed=3000,
                warm=0,
                part=n,
                size=100,
                needs=frozenset({f"{n} subscriptions"}),
                alone=True,
                rounds=0 if n < 100 else 1,
            )
            for n in (1, 10, 100, 500)
        ),
        *(
            Case(
                f"backlog/{n}",
                f"drain a backlog of {n:,}",
                work.drain(),
                fixed=n,
                warm=0,
                size=100,
                needs=frozenset({"backlogs"}),
                alone=True,
                rounds=3 if n > 10_000 else 0,
            )
            for n in (2_000, 10_000, 50_000)
        ),
    ]


CASES = [*_throughput(), *_behaviour(), *_costs()]


def find(names: str) -> list[Case]:
    """Return the cases with these comma-separated names, or that begin with them; all for an empty text.

    ``consume`` stands for ``consume/1KiB``, ``consume-10ms`` and so on.

    Raises:
        ValueError: There is none of that name.
    """
    if not names:
        return CASES
    found: list[Case] = []
    for name in names.split(","):
        exact = [case for case in CASES if case.name == name]
        more = exact or [case for case in CASES if case.name.startswith((f"{name}/", f"{name}-"))]
        if not more:
            raise ValueError(f"no case is called {name!r}; there are: {', '.join(c.name for c in CASES)}")
        found += more
    return found
