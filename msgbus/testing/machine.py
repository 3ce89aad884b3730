"""The Hypothesis state machine that drives `msgbus.testing.model.World`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from msgbus.adapter import Source
from msgbus.testing.model import Fate, Twin, Verb, World

__all__ = ["drive"]

_VERBS: st.SearchStrategy[Verb] = st.sampled_from(["ack", "ack", "nack", "give back", "delay", "bury", "park"])
_DELAYS = st.sampled_from([1.93, 5.71, 23.3])
_STEPS = st.sampled_from([0.53, 2.21, 6.47, 11.9, 60.1])


def drive(url: str, sources: Sequence[Source], *, examples: int, steps: int = 30, shrink: bool = False) -> None:
    """Drive the adapter at *url* beside the model; raise what differs, with the steps that lead there.

    Args:
        url: The adapter's URL; it must follow a virtual clock.
        sources: What is consumed, all of one address. Each example gets an address of its own.
        examples: How many sequences.
        steps: How many operations in each, at most.
        shrink: Look for a shorter sequence that fails too. It helps to understand a failure, and may take minutes.
    """
    numbers = count()

    class Example(_Machine):
        def __init__(self) -> None:
            number = next(numbers)
            super().__init__(url, [_numbered(source, number) for source in sources])

    run_state_machine_as_test(
        Example,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def _numbered(source: Source, number: int) -> Source:
    return replace(source, address=replace(source.address, name=f"{source.address.name}.{number}"))


class _Machine(RuleBasedStateMachine):
    """Random life of a few consumers."""

    def __init__(self, url: str, sources: Sequence[Source]) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._url = url
        self._sources = sources
        self._keyed = sources[0].address.keyed

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self._runner.run(call)
        except Exception as exc:
            if hasattr(self, "world"):
                exc.add_note("what happened:\n" + "\n".join(self.world.story))
            raise

    @initialize()
    def begin(self) -> None:
        async def make() -> World:
            world = World(self._url, self._sources)
            await world.open()
            for source in world.sources:
                await world.join(source)
                await world.join(source.dead_letters)
            return world

        self.world: World = self._run(make())
        capabilities = self.world.subject.capabilities
        self._may_delay = capabilities.max_delay > 60
        self._may_park = capabilities.park_keys and self._keyed

    @rule(
        keys=st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=4), delay=st.one_of(st.just(0.0), _DELAYS)
    )
    def publish(self, keys: list[str | None], delay: float) -> None:
        delay = delay if self._may_delay else 0.0
        # Whether a delayed message comes before or after others of its key is nobody's promise.
        self._run(self.world.publish(keys if self._keyed and not delay else [None] * len(keys), delay))

    @rule(data=st.data(), limit=st.sampled_from([1, 2, 3, 10]))
    def receive(self, data: st.DataObject, limit: int) -> None:
        self._run(self.world.receive(self._twin(data), limit))

    @rule(data=st.data(), limit=st.sampled_from([2, 10]))
    def receive_and_settle(self, data: st.DataObject, limit: int) -> None:
        twin = self._twin(data)
        self._run(self.world.receive(twin, limit))
        if twin.held:
            self._settle(data, twin)

    @precondition(lambda self: any(t.held for t in self.world.twins))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self._settle(data, self._choose(data, [t for t in self.world.twins if t.held]))

    def _settle(self, data: st.DataObject, twin: Twin) -> None:
        chosen = data.draw(st.lists(st.sampled_from(list(twin.held)), min_size=1, unique=True))
        self._run(self.world.settle(twin, {message_id: self._fate(data, twin) for message_id in chosen}))

    @precondition(lambda self: any(self.world.loose(t) for t in self.world.twins))
    @rule(data=st.data())
    def settle_late(self, data: st.DataObject) -> None:
        twin = self._choose(data, [t for t in self.world.twins if self.world.loose(t)])
        message_id = data.draw(st.sampled_from(self.world.loose(twin)))
        self._run(self.world.settle_late(twin, message_id, self._fate(data, twin)))

    @precondition(lambda self: any(t.held and t.source.dead for t in self.world.twins))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        twin = self._choose(data, [t for t in self.world.twins if t.held and t.source.dead])
        self._run(self.world.replay(twin, data.draw(st.sampled_from(list(twin.held)))))

    @precondition(lambda self: self.world.subject.capabilities.lease == "renewable")
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        self._run(self.world.extend(self._twin(data)))

    @precondition(lambda self: len(self.world.twins) < 8)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        sources = [part for source in self.world.sources for part in (source, source.dead_letters)]
        self._run(self.world.join(sources[data.draw(st.integers(0, len(sources) - 1))]))

    @precondition(lambda self: len(self.world.twins) > 2)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self._run(self.world.leave(self._twin(data)))

    @rule(seconds=_STEPS)
    def advance(self, seconds: float) -> None:
        self._run(self.world.advance(seconds))

    @rule()
    def compare_figures(self) -> None:
        self._run(self.world.compare_figures())

    def teardown(self) -> None:
        with self._runner:
            if hasattr(self, "world"):
                try:
                    self._run(self.world.finish())
                finally:
                    self._run(self.world.aclose())

    def _twin(self, data: st.DataObject) -> Twin:
        return self._choose(data, self.world.twins)

    def _choose(self, data: st.DataObject, twins: list[Twin]) -> Twin:
        return twins[data.draw(st.integers(0, len(twins) - 1))]

    def _fate(self, data: st.DataObject, twin: Twin) -> Fate:
        verb: Verb = data.draw(_VERBS)
        if twin.source.dead and verb in {"bury", "park"}:
            verb = "give back"
        if verb == "park" and not self._may_park:
            verb = "bury"
        if verb == "delay" and not self._may_delay:
            verb = "nack"
        return Fate(verb, data.draw(_DELAYS) if verb == "delay" else 0.0)
