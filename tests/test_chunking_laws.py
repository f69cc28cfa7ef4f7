"""Laws of every strategy, whatever is called in whatever order."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from chunk_steps import DT_S, HORIZON, STRATEGIES, seen
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pi0_control.control.chunking import ChunkingConfig, ChunkPlayer
from pi0_control.types import ActionChunk, ChunkPrefix


@dataclass
class World:
    """Makes calls at random and keeps what is needed to judge what comes of them."""

    player: ChunkPlayer
    now_s: float = 0.0
    played: int = 0  # control steps in which an action was emitted
    prompt: int = 0
    episode: int = 0
    chunks: list[ActionChunk] = field(default_factory=list)
    prefixes: list[ChunkPrefix | None] = field(default_factory=list)
    log: list[Any] = field(default_factory=list)

    def call(self, what: str, which: int) -> None:
        if what == "load" and self.chunks:  # one of the last three: in time, late or a second time
            self.player.load(self.chunks[-1 - which % min(3, len(self.chunks))], self.now_s)
        elif what == "bad" and self.chunks:
            self.player.load(replace(self.chunks[-1], actions=np.full((HORIZON, 5), np.nan, np.float32)), self.now_s)
        elif what == "abandon":
            self.player.abandon()
        elif what == "prompt":
            self.prompt = which
        elif what == "reset":
            self.player.reset()
            self.episode += 1

    def tick(self, meanwhile: int | None = None) -> NDArray[np.float32] | None:
        """A control step; the actions of a chunk are [step of the chunk, chunk, prompt, episode, step played]."""
        if self.player.wants_chunk(self.now_s, str(self.prompt)):
            self.prefixes.append(self.player.begin(self.now_s, seen(self.now_s, str(self.prompt))))
            index = np.arange(HORIZON, dtype=np.float32)
            made = [np.full(HORIZON, value) for value in (len(self.chunks), self.prompt, self.episode)]
            actions = np.stack([index, *made, self.played + index], axis=1).astype(np.float32)
            self.chunks.append(ActionChunk(actions, self.now_s, DT_S))
        if meanwhile is not None:
            self.call("load", meanwhile)
        action = self.player.action(self.now_s)
        assert (action is None) <= (self.player.reason != "")
        self.log.append((self.player.reason, None if action is None else action.tobytes()))
        if action is not None:
            assert action[2] == pytest.approx(self.prompt, abs=1e-5)
            assert action[3] == pytest.approx(self.episode, abs=1e-5)
        return action


calls = st.tuples(st.sampled_from(["load", "load", "load", "bad", "abandon", "prompt", "reset"]), st.integers(0, 2))
some_settings = st.fixed_dictionaries(
    {
        "execution_horizon": st.integers(1, HORIZON),
        "first_delay": st.none() | st.integers(0, 8),
        "max_delay": st.none() | st.integers(0, 4),
    }
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=60, deadline=None)
@given(chosen=some_settings, steps=st.lists(st.tuples(calls, st.none() | st.integers(0, 2)), min_size=1, max_size=50))
def test_every_action_is_of_its_step_its_prompt_and_its_episode_whatever_comes(
    strategy: Any, chosen: dict[str, Any], steps: list[tuple[tuple[str, int], int | None]]
) -> None:
    """No action's time has passed, none is skipped but for those played meanwhile, and equal calls play equally.

    Chunks come late, never, twice, out of order or bad, the prompt changes, episodes begin: the action emitted is
    the one predicted for as many steps after its observation as were played since.
    """
    logs = []
    for _ in range(2):
        world = World(ChunkPlayer(ChunkingConfig(strategy, **chosen)))
        for call, meanwhile in steps:
            world.call(*call)
            action = world.tick(meanwhile)
            if action is not None:
                assert action[4] == pytest.approx(world.played, abs=1e-4)
                world.played += 1
            world.now_s += DT_S
        logs.append(world.log)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("strategy", ["sync", "async", "rtc", "rtc_trained"])
@settings(max_examples=60, deadline=None)
@given(chosen=some_settings, steps=st.lists(st.tuples(st.floats(0.01, 3.0), calls), min_size=1, max_size=50))
def test_on_any_clock_the_plan_follows_the_time_and_skips_no_more_than_has_passed(
    strategy: Any, chosen: dict[str, Any], steps: list[tuple[float, tuple[str, int]]]
) -> None:
    """Control loops that stall and hurry, up to the rounding to whole steps."""
    world = World(ChunkPlayer(ChunkingConfig(strategy, **chosen)))
    last: tuple[int, float, int] | None = None  # chunk, time, step of the chunk
    for pause, call in steps:
        world.now_s += pause * DT_S
        world.call(*call)
        action = world.tick()
        if action is None:
            last = None
            continue
        step, chunk = int(action[0]), int(action[1])
        assert step <= (world.now_s - world.chunks[chunk].start_s) / DT_S + 1
        if last is not None and last[0] == chunk:
            assert step >= last[2]
            assert abs(step - last[2] - (world.now_s - last[1]) / DT_S) <= 1
        last = chunk, world.now_s, step


@pytest.mark.parametrize("strategy", ["rtc", "rtc_trained"])
@settings(max_examples=60, deadline=None)
@given(chosen=some_settings, steps=st.lists(st.lists(calls, max_size=1), min_size=1, max_size=50))
def test_a_prefix_is_what_is_played_next(
    strategy: Any, chosen: dict[str, Any], steps: list[list[tuple[str, int]]]
) -> None:
    world = World(ChunkPlayer(ChunkingConfig(strategy, **chosen)))
    taken: set[int] = set()
    for step in steps:
        for call in step:
            world.call(*call)
        asked = len(world.chunks)
        action = world.tick()
        for prefix in world.prefixes[asked:]:
            if prefix is not None:
                assert 0 <= prefix.delay <= prefix.end <= len(prefix.actions) < HORIZON
                np.testing.assert_array_equal(prefix.actions[:, 4], world.played + np.arange(len(prefix.actions)))
                assert (prefix.actions[:, 2:4] == (world.prompt, world.episode)).all()
        if action is not None:
            made_for = world.prefixes[int(action[1])]
            if strategy == "rtc_trained" and int(action[1]) not in taken:
                assert action[0] <= (made_for.delay if made_for else 0), "later than it was made for"
            taken.add(int(action[1]))
            world.played += 1
        world.now_s += DT_S
