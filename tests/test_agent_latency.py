from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting_policy import CountingPolicy, observe, observe_many
from numpy.typing import NDArray
from tiny_policy import tiny_policy

from pi0_control.control import ChunkingConfig, Pi0Agent
from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.policy import RtcConfig
from pi0_control.types import ActionChunk, ChunkPrefix, Observation


def play(agent: Pi0Agent, steps: int) -> list[float]:
    """The first joint's targets; the state is ten times the step, so its chunk is 10 k, 10 k + 1, .."""
    return [float(agent.get_action(observe(10 * step))[0]) for step in range(steps)]


def test_while_inference_takes_time_it_stands_where_it_was_commanded_to_and_says_so() -> None:
    agent = Pi0Agent(CountingPolicy(execution_horizon=3), latency_steps=2)
    held, actions = [], []
    for step in range(7):
        actions.append(agent.get_action(observe(10 * step))[0])
        held.append([command.status == "holding" for command in agent.commands])
    assert actions == [0, 0, 0, 1, 2, 2, 2]
    assert held == [[True], [True], [False], [False], [False], [True], [True]]
    assert agent.commands[0].reason == "chunk exhausted"


def test_a_chunk_inferred_meanwhile_is_played_from_the_action_meant_for_now() -> None:
    agent = Pi0Agent(CountingPolicy(execution_horizon=3), chunking=ChunkingConfig("async"), latency_steps=2)
    assert play(agent, 11) == [0, 0, 0, 1, 2, 3, 4, 52, 53, 54, 82]
    assert agent.players[0].last_delay == 2


def test_a_seam_is_told_in_the_step_in_which_a_chunk_takes_over() -> None:
    agent = Pi0Agent(CountingPolicy(execution_horizon=3), chunking=ChunkingConfig("async"), latency_steps=2)
    seams = {}
    for step in range(11):
        agent.get_action(observe(10 * step))
        if agent.seam_jumps[0] is not None:
            seams[step] = agent.seam_jumps[0].tolist()
    assert seams == {7: 7 * [47.0], 10: 7 * [27.0]}  # 52 instead of 5, 82 instead of 55


@pytest.mark.parametrize("latency", [0, [0, 2, 5], lambda rng: int(rng.poisson(2))])
def test_latencies_follow_from_the_seed(latency: Any) -> None:
    plays = []
    for seed in (1, 1, 2):
        agent = Pi0Agent(CountingPolicy(), chunking=ChunkingConfig("async"), latency_steps=latency)
        agent.reset(seed)
        plays.append(play(agent, 40))
    assert plays[0] == plays[1]
    assert (plays[0] == plays[2]) == (latency == 0)


@pytest.mark.parametrize("latency", [-1, [], [2, -1]])
def test_a_latency_is_zero_or_more(latency: Any) -> None:
    with pytest.raises(ConfigError, match="expected 0 or more"):
        Pi0Agent(CountingPolicy(), latency_steps=latency)


@pytest.mark.parametrize("strategy", ["sync", "async", "ensemble"])
def test_slow_vector_actions_equal_those_of_single_agents(strategy: Any) -> None:
    chunking = ChunkingConfig(strategy)
    levels = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    vector = Pi0Agent(CountingPolicy(), chunking=chunking, latency_steps=2)
    together = np.stack([vector.get_action(observe_many(row)) for row in levels])
    for column in range(3):
        single = Pi0Agent(CountingPolicy(), chunking=chunking, latency_steps=2)
        alone = np.stack([single.get_action(observe(level)) for level in levels[:, column]])
        assert np.array_equal(together[:, column], alone)


def test_after_a_reset_no_chunk_of_before_arrives() -> None:
    agent = Pi0Agent(CountingPolicy(), latency_steps=2)
    agent.get_action(observe_many([0, 0]))
    agent.reset(mask=[False, True])
    actions = [agent.get_action(observe_many([level, level]))[:, 0].tolist() for level in (10, 20, 30)]
    assert actions == [[0, 10], [0, 10], [1, 10]]
    agent.get_action(observe_many([40, 40]))
    agent.reset()
    assert play(agent, 3) == [0, 0, 0]


class PrefixedPolicy(CountingPolicy):
    """Remembers the prefixes it was given."""

    def __init__(self) -> None:
        super().__init__(horizon=6, execution_horizon=3)
        self.prefixes: list[ChunkPrefix | None] = []

    def infer_batch(
        self,
        observations: Sequence[Observation],
        *,
        noise: NDArray[np.float32] | None = None,
        prefixes: Sequence[ChunkPrefix | None] | None = None,
    ) -> list[ActionChunk]:
        self.prefixes += prefixes or []
        return super().infer_batch(observations)


def test_real_time_chunking_tells_the_policy_what_is_decided() -> None:
    policy = PrefixedPolicy()
    agent = Pi0Agent(policy, chunking=ChunkingConfig("rtc", first_delay=1), latency_steps=2)
    play(agent, 11)
    first, second, third = policy.prefixes
    assert first is None
    assert second is not None
    assert third is not None
    assert (second.actions[:, 0].tolist(), second.delay, second.end) == ([3, 4, 5], 1, 3)
    assert (third.actions[:, 0].tolist(), third.delay, third.end) == ([53, 54, 55], 2, 3)


def test_a_policy_trained_for_short_delays_goes_on_after_a_long_one() -> None:
    policy, latencies = tiny_policy(rtc=RtcConfig("trained"), rtc_max_delay=2), iter([0, 0, 0, 3, *30 * [1]])
    agent = Pi0Agent(policy, 2, ChunkingConfig("rtc_trained"), latency_steps=lambda rng: next(latencies))
    still, delays = {**observe(), "state": np.zeros(7, np.float32)}, list[int | None]()
    for _ in range(25):
        agent.get_action(still)
        delays.append(agent.players[0].last_delay)
    assert 3 in delays
    assert delays[-1] == 1
    assert agent.commands[0].status == "tracking"


def test_a_policy_that_cannot_continue_chunks_so_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 'rtc_trained'"):
        Pi0Agent(tiny_policy(rtc_max_delay=2), chunking=ChunkingConfig("rtc_trained"))
    with pytest.raises(ConfigError, match="got 'rtc'"):
        Pi0Agent(tiny_policy(rtc=RtcConfig("trained"), rtc_max_delay=2), chunking=ChunkingConfig("rtc"))


def test_a_policy_is_opened_as_the_strategy_continues_chunks(tmp_path: Path) -> None:
    tiny_policy(rtc_max_delay=2).save(tmp_path)
    agents = [Pi0Agent.from_pretrained(tmp_path, chunking=ChunkingConfig(name)) for name in ("rtc", "rtc_trained")]
    assert [agent.chunking.max_delay for agent in agents] == [None, 2]


def test_after_a_failed_inference_the_next_step_asks_again() -> None:
    class FailingPolicy(CountingPolicy):
        def infer_batch(self, *args: Any, **kwargs: Any) -> list[ActionChunk]:
            if len(self.batches) == 1:
                self.batches.append([])
                raise CheckpointError("not finite")
            return super().infer_batch(*args, **kwargs)

    agent = Pi0Agent(FailingPolicy(), chunking=ChunkingConfig("async"))
    assert play(agent, 3) == [0, 1, 2]
    with pytest.raises(CheckpointError):
        agent.get_action(observe(30))
    assert agent.get_action(observe(40))[0] == 40


def test_it_acts_at_a_higher_rate_than_the_policy() -> None:
    agent = Pi0Agent(CountingPolicy(), chunking=ChunkingConfig("async", interpolation=2))
    assert play(agent, 7) == [0, 0, 0.5, 1, 1.5, 2, 31]  # half way from 2 to the new chunk's 60
