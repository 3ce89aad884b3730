"""The Hypothesis state machine that drives `msgbus.testing.model.World`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from itertools import count, cycle
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from msgbus.adapter import Source
from msgbus.testing.model import LEASE, Fate, Twin, Verb, World

__all__ = ["drive"]

# What is drawn must not depend on what the adapter does: it may choose differently each time. So everything is drawn
# from fixed sets, and a number stands for "the one at that place, counted round".
_NUMBER = st.integers(0, 11)
_VERBS: st.SearchStrategy[Verb] = st.sampled_from(["ack", "nack", "give back", "delay", "delay", "bury", "park"])
_DELAYS = st.sampled_from([3.07, 20.3])
_FATES = st.builds(Fate, _VERBS, _DELAYS)
_STEPS = st.sampled_from([1.03, 2.21, 12.1, 40.3])
_THREE = st.tuples(_FATES, _FATES, _FATES)
_KEYS = st.lists(st.sampled_from(["a", "b", None]), min_size=2, max_size=6)


def drive(url: str, sources: Sequence[Source], *, examples: int, steps: int = 60, shrink: bool = False) -> None:
    """Drive the adapter at *url* beside the model; raise what differs, with the steps that led there.

    Args:
        url: The adapter's URL; it must follow a virtual clock.
        sources: What is consumed, all of one address. Each example gets an address of its own.
        examples: How many sequences.
        steps: How many operations in each, at most.
        shrink: Look for a shorter sequence that fails too. It helps to understand a failure, and may take minutes.
    """
    numbers = count()
    failures: list[Exception] = []

    class Example(_Machine):
        def __init__(self) -> None:
            number = next(numbers)
            super().__init__(url, [_numbered(source, number) for source in sources], failures)

    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Example, settings=options)
    except Exception:
        if failures:
            # An adapter that chooses at random may not fail again in the same way; what was seen was seen.
            raise failures[-1] from None
        raise


def _numbered(source: Source, number: int) -> Source:
    return replace(source, address=replace(source.address, name=f"{source.address.name}.{number}"))


class _Machine(RuleBasedStateMachine):
    """Random life of a few consumers."""

    def __init__(self, url: str, sources: Sequence[Source], failures: list[Exception]) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._failures = failures
        self._keyed = sources[0].address.keyed
        self.world = World(url, sources)
        capabilities = self.world.subject.capabilities
        self._may_delay = capabilities.max_delay > 60
        self._may_park = capabilities.park_keys and self._keyed
        self._may_extend = capabilities.lease == "renewable"

    def _run(self, call: Coroutine[Any, Any, Any]) -> None:
        try:
            self._runner.run(call)
        except Exception as exc:
            exc.add_note("what happened:\n" + "\n".join(self.world.story))
            self._failures.append(exc)
            raise

    @initialize()
    def begin(self) -> None:
        async def make() -> None:
            await self.world.open()
            for source in self.world.sources:
                for part in (source, source, source.dead_letters):
                    await self.world.join(part)

        self._run(make())

    # Hypothesis chooses rules evenly, and leaves out some in each example: what matters most is there several times.

    @rule(keys=_KEYS, delay=st.one_of(st.just(0.0), _DELAYS))
    def publish_sometimes_late(self, keys: list[str | None], delay: float) -> None:
        self._publish(keys, delay)

    @rule(keys=_KEYS)
    def publish(self, keys: list[str | None]) -> None:
        self._publish(keys, 0.0)

    @rule(keys=_KEYS, who=_NUMBER, fates=_THREE)
    def publish_receive_and_settle(self, keys: list[str | None], who: int, fates: tuple[Fate, Fate, Fate]) -> None:
        self._publish(keys, 0.0)
        self.receive_and_settle(who, 10, fates)

    def _publish(self, keys: list[str | None], delay: float) -> None:
        delay = delay if self._may_delay else 0.0
        # Whether a delayed message comes before or after others of its key is nobody's promise.
        self._run(self.world.publish(keys if self._keyed and not delay else [None] * len(keys), delay))

    @rule(who=_NUMBER, limit=st.sampled_from([1, 2, 3, 10]))
    def receive(self, who: int, limit: int) -> None:
        self._run(self.world.receive(self._twin(who), limit))

    @rule(who=_NUMBER, limit=st.sampled_from([2, 10]), fates=_THREE)
    def receive_and_settle(self, who: int, limit: int, fates: tuple[Fate, Fate, Fate]) -> None:
        twin = self._twin(who)
        self._run(self.world.receive(twin, limit))
        self._settle(twin, list(twin.held), fates)

    @rule(who=_NUMBER, step=st.sampled_from([-1, 1, 2, 3]), fates=_THREE)
    def settle(self, who: int, step: int, fates: tuple[Fate, Fate, Fate]) -> None:
        if holding := [t for t in self.world.twins if t.held]:
            twin = holding[who % len(holding)]
            self._settle(twin, list(twin.held)[::step], fates)

    @rule(who=_NUMBER, other=_NUMBER, fates=_THREE)
    def lose_and_settle_late(self, who: int, other: int, fates: tuple[Fate, Fate, Fate]) -> None:
        loser = self._twin(who)
        rivals = [t for t in self.world.twins if t is not loser and t.source == loser.source]
        self._run(self.world.receive(loser, 3))
        self._run(self.world.advance(LEASE + 1.7))
        if rivals:
            self._run(self.world.receive(rivals[other % len(rivals)], 10))
        for message_id, fate in zip(self.world.loose(loser), fates, strict=False):
            self._run(self.world.settle_late(loser, message_id, self._possible(loser, fate)))

    @rule(who=_NUMBER, which=_NUMBER)
    def replay(self, who: int, which: int) -> None:
        if dead := [t for t in self.world.twins if t.source.dead]:
            twin = dead[who % len(dead)]
            self._run(self.world.receive(twin, 3))
            if twin.held:
                self._run(self.world.replay(twin, list(twin.held)[which % len(twin.held)]))

    @rule(who=_NUMBER)
    def extend(self, who: int) -> None:
        if self._may_extend:
            self._run(self.world.extend(self._twin(who)))

    @rule(who=_NUMBER)
    def join(self, who: int) -> None:
        sources = [part for source in self.world.sources for part in (source, source, source.dead_letters)]
        if len(self.world.twins) < 8:
            self._run(self.world.join(sources[who % len(sources)]))

    @rule(who=_NUMBER)
    def leave(self, who: int) -> None:
        if len(self.world.twins) > 2:
            self._run(self.world.leave(self._twin(who)))

    @rule(seconds=_STEPS)
    def advance(self, seconds: float) -> None:
        self._run(self.world.advance(seconds))

    @rule(seconds=_STEPS, who=_NUMBER, fates=_THREE)
    def advance_receive_and_settle(self, seconds: float, who: int, fates: tuple[Fate, Fate, Fate]) -> None:
        self._run(self.world.advance(seconds))
        self.receive_and_settle(who, 10, fates)

    @rule()
    def compare_figures(self) -> None:
        self._run(self.world.compare_figures())

    def teardown(self) -> None:
        with self._runner:
            try:
                if self.world.twins and not self._failures:
                    self._run(self.world.finish())
            finally:
                self._runner.run(self.world.aclose())

    def _twin(self, who: int) -> Twin:
        return self.world.twins[who % len(self.world.twins)]

    def _settle(self, twin: Twin, chosen: list[str], fates: tuple[Fate, Fate, Fate]) -> None:
        if chosen:
            possible = [self._possible(twin, fate) for fate in fates]
            self._run(self.world.settle(twin, dict(zip(chosen, cycle(possible), strict=False))))

    def _possible(self, twin: Twin, fate: Fate) -> Fate:
        verb = fate.verb
        if twin.source.dead and verb in {"bury", "park"}:
            verb = "give back"
        if verb == "park" and not self._may_park:
            verb = "bury"
        if verb == "delay" and not self._may_delay:
            verb = "nack"
        return Fate(verb, fate.delay if verb == "delay" else 0.0)
