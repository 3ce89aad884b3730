"""The Hypothesis state machine that drives `msgbus.testing.model.World`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from msgbus.adapter import Source
from msgbus.testing.model import Fate, Twin, Verb, World

__all__ = ["drive"]

# What is drawn must not depend on what the adapter does: it may choose differently each time. So everything is drawn
# from fixed sets, and a number stands for "the one at that place, counted round".
_NUMBER = st.integers(0, 11)
_VERBS: st.SearchStrategy[Verb] = st.sampled_from(["ack", "ack", "nack", "give back", "delay", "bury", "park"])
_DELAYS = st.sampled_from([1.93, 5.71, 23.3])
_FATES = st.builds(Fate, _VERBS, _DELAYS)
_STEPS = st.sampled_from([0.53, 2.21, 6.47, 11.9, 60.1])
_KEYS = st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=4)


def drive(url: str, sources: Sequence[Source], *, examples: int, steps: int = 30, shrink: bool = False) -> None:
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
                await self.world.join(source)
                await self.world.join(source.dead_letters)

        self._run(make())

    @rule(keys=_KEYS, delay=st.one_of(st.just(0.0), _DELAYS))
    def publish(self, keys: list[str | None], delay: float) -> None:
        delay = delay if self._may_delay else 0.0
        # Whether a delayed message comes before or after others of its key is nobody's promise.
        self._run(self.world.publish(keys if self._keyed and not delay else [None] * len(keys), delay))

    @rule(who=_NUMBER, limit=st.sampled_from([1, 2, 3, 10]))
    def receive(self, who: int, limit: int) -> None:
        self._run(self.world.receive(self._twin(who), limit))

    @rule(who=_NUMBER, limit=st.sampled_from([2, 10]), fates=st.lists(_FATES, min_size=1, max_size=4))
    def receive_and_settle(self, who: int, limit: int, fates: list[Fate]) -> None:
        twin = self._twin(who)
        self._run(self.world.receive(twin, limit))
        self._settle(twin, dict(enumerate(fates)))

    @rule(who=_NUMBER, fates=st.dictionaries(_NUMBER, _FATES, min_size=1, max_size=4))
    def settle(self, who: int, fates: dict[int, Fate]) -> None:
        if holding := [t for t in self.world.twins if t.held]:
            self._settle(holding[who % len(holding)], fates)

    @rule(who=_NUMBER, which=_NUMBER, fate=_FATES)
    def settle_late(self, who: int, which: int, fate: Fate) -> None:
        loose = [(t, message_id) for t in self.world.twins for message_id in self.world.loose(t)]
        if loose:
            twin, message_id = loose[(who + which) % len(loose)]
            self._run(self.world.settle_late(twin, message_id, self._possible(twin, fate)))

    @rule(who=_NUMBER, which=_NUMBER)
    def replay(self, who: int, which: int) -> None:
        dead = [(t, message_id) for t in self.world.twins if t.source.dead for message_id in t.held]
        if dead:
            self._run(self.world.replay(*dead[(who + which) % len(dead)]))

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

    def _settle(self, twin: Twin, fates: dict[int, Fate]) -> None:
        held = list(twin.held)
        chosen = {held[which % len(held)]: self._possible(twin, fate) for which, fate in fates.items() if held}
        if chosen:
            self._run(self.world.settle(twin, chosen))

    def _possible(self, twin: Twin, fate: Fate) -> Fate:
        verb = fate.verb
        if twin.source.dead and verb in {"bury", "park"}:
            verb = "give back"
        if verb == "park" and not self._may_park:
            verb = "bury"
        if verb == "delay" and not self._may_delay:
            verb = "nack"
        return Fate(verb, fate.delay if verb == "delay" else 0.0)
