from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from pi0_control.control import ChunkingConfig, Pi0Agent
from pi0_control.errors import CheckpointError, ConfigError, ObservationError
from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, ChunkPrefix, Observation

ARM6 = RobotSpec.from_yaml("arm6")


class CountingPolicy(HoldPolicy):
    """Action i of a chunk is the state plus i; remembers what it was asked."""

    def __init__(self, horizon: int = 6, execution_horizon: int = 3) -> None:
        super().__init__(ARM6, horizon, execution_horizon)
        self.batches: list[list[Observation]] = []
        self.seeds: list[int | None] = []

    def infer_batch(
        self, observations: Sequence[Observation], *, noise: NDArray[np.float32] | None = None
    ) -> list[ActionChunk]:
        self.batches.append(list(observations))
        steps = np.arange(self.horizon, dtype=np.float32)[:, None]
        return [
            ActionChunk(chunk.actions + steps, chunk.start_s, chunk.dt_s, {"prefix": 1.0, "denoise": 2.0})
            for chunk in super().infer_batch(observations)
        ]

    def reset(self, seed: int | None = None) -> None:
        self.seeds.append(seed)


def observe(level: float = 0.0, prompt: Any = "touch the red block") -> dict[str, Any]:
    images = {name: np.zeros((8, 8, 3), np.uint8) for name in ARM6.cameras}
    return {"images": images, "state": np.full(7, level, np.float32), "prompt": prompt}


def observe_many(levels: Sequence[float], prompts: Any = None) -> dict[str, Any]:
    images = {name: np.zeros((len(levels), 8, 8, 3), np.uint8) for name in ARM6.cameras}
    states = np.repeat(np.array(levels, np.float32)[:, None], 7, axis=1)
    return {"images": images, "state": states, "prompt": prompts or ("touch the red block",) * len(levels)}


class ArmEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """Goes where it is told at once; asks for three steps."""

    def __init__(self) -> None:
        image = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        joints = gym.spaces.Box(-10, 10, (7,), np.float32)
        images = gym.spaces.Dict(dict.fromkeys(ARM6.cameras, image))
        self.observation_space = gym.spaces.Dict({"images": images, "state": joints, "prompt": gym.spaces.Text(64)})
        self.action_space = joints

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.state = self.np_random.uniform(-1, 1, 7).astype(np.float32)
        return {**observe(prompt="touchtheredblock"), "state": self.state}, {}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.state = action
        return {**observe(prompt="touchtheredblock"), "state": action}, 0.0, self.steps == 3, False, {}


def test_a_chunk_is_played_for_the_execution_horizon_then_planned_anew() -> None:
    policy = CountingPolicy(execution_horizon=3)
    agent = Pi0Agent(policy)
    agent.reset(seed=4)
    actions = [agent.get_action(observe(level))[0] for level in (0, 10, 20, 30, 40)]
    assert actions == [0, 1, 2, 30, 31]
    assert len(policy.batches) == 2
    assert policy.seeds == [4]


def test_the_action_is_a_float32_vector_of_the_robot() -> None:
    action = Pi0Agent(HoldPolicy(ARM6)).get_action(observe(0.5))
    assert action.shape == (7,)
    assert action.dtype == np.float32
    assert (action == 0.5).all()


def test_the_execution_horizon_can_be_chosen() -> None:
    policy = CountingPolicy()
    agent = Pi0Agent(policy, execution_horizon=1)
    assert [agent.get_action(observe(level))[0] for level in (0, 10, 20)] == [0, 10, 20]
    for horizon in (0, 7):
        with pytest.raises(ConfigError, match="expected 1 to 6"):
            Pi0Agent(policy, execution_horizon=horizon)


def test_timing_is_told_only_where_a_chunk_was_inferred() -> None:
    agent = Pi0Agent(CountingPolicy(execution_horizon=2))
    assert agent.chunk_timing_ms is None
    timings = []
    for _ in range(3):
        agent.get_action(observe())
        timings.append(agent.chunk_timing_ms)
    assert timings == [{"prefix": 1.0, "denoise": 2.0}, None, {"prefix": 1.0, "denoise": 2.0}]


def test_reset_drops_the_chunk_and_passes_the_seed_on() -> None:
    policy = CountingPolicy()
    agent = Pi0Agent(policy)
    agent.get_action(observe(0))
    agent.reset()
    assert agent.get_action(observe(10))[0] == 10
    agent.reset(seed=7)
    assert policy.seeds == [None, 7]


def test_a_new_prompt_is_planned_for_at_once() -> None:
    policy = CountingPolicy()
    agent = Pi0Agent(policy)
    agent.get_action(observe(0))
    assert agent.get_action(observe(10, "touch the blue block"))[0] == 10
    assert agent.get_action(observe(20, "touch the blue block"))[0] == 11


@pytest.mark.parametrize("prompt", [np.str_("go"), np.array("go"), np.array("go", dtype=object)])
def test_a_prompt_may_come_in_numpy_wrapping(prompt: Any) -> None:
    policy = CountingPolicy()
    Pi0Agent(policy).get_action(observe(prompt=prompt))
    assert policy.batches[0][0].prompt == "go"
    assert isinstance(policy.batches[0][0].prompt, str)


def test_vector_actions_equal_those_of_single_agents() -> None:
    levels = np.array([[0.0, 5.0, -3.0], [1.0, 6.0, -2.0], [2.0, 8.0, 4.0], [9.0, 9.0, 9.0]])
    vector = Pi0Agent(CountingPolicy(execution_horizon=2))
    together = np.stack([vector.get_action(observe_many(row)) for row in levels])
    assert together.shape == (4, 3, 7)
    for column in range(3):
        single = Pi0Agent(CountingPolicy(execution_horizon=2))
        alone = np.stack([single.get_action(observe(level)) for level in levels[:, column]])
        assert np.array_equal(together[:, column], alone)


def test_only_sub_environments_that_are_due_are_inferred_and_in_one_batch() -> None:
    policy = CountingPolicy(execution_horizon=3)
    agent = Pi0Agent(policy)
    agent.get_action(observe_many([0, 0, 0]))
    agent.reset(mask=[False, True, False])
    actions = agent.get_action(observe_many([10, 10, 10]))
    assert actions[:, 0].tolist() == [1, 10, 1]
    agent.get_action(observe_many([20, 20, 20]))
    assert agent.get_action(observe_many([30, 30, 30]))[:, 0].tolist() == [30, 12, 30]
    assert [len(batch) for batch in policy.batches] == [3, 1, 2]


@pytest.mark.parametrize("wrap", [tuple, list, np.array, lambda prompts: np.array(prompts, dtype=object)])
def test_each_sub_environment_has_its_prompt(wrap: Any) -> None:
    policy = CountingPolicy()
    Pi0Agent(policy).get_action({**observe_many([0, 0]), "prompt": wrap(["go", "tap it"])})
    assert [row.prompt for row in policy.batches[0]] == ["go", "tap it"]


def test_it_drives_a_gymnasium_environment() -> None:
    env = ArmEnv()
    agent = Pi0Agent(CountingPolicy(execution_horizon=2))
    observation, _ = env.reset(seed=0)
    start = observation["state"].copy()
    for _ in range(2):
        observation, *_ = env.step(agent.get_action(observation))
    np.testing.assert_allclose(observation["state"], start + 1)


@pytest.mark.parametrize("mode", [gym.vector.AutoresetMode.NEXT_STEP, gym.vector.AutoresetMode.SAME_STEP])
def test_each_episode_of_a_vector_environment_begins_with_its_own_chunk(mode: gym.vector.AutoresetMode) -> None:
    agent = Pi0Agent(CountingPolicy(execution_horizon=6))  # longer than an episode
    envs = gym.vector.SyncVectorEnv([ArmEnv] * 2, autoreset_mode=mode)
    observation, _ = envs.reset(seed=0)
    begins, ended_before, episodes = np.ones(2, np.bool_), np.zeros(2, np.bool_), 0
    for _ in range(9):
        action = agent.get_action(observation)
        assert action.shape == envs.action_space.shape
        np.testing.assert_array_equal(action[begins], observation["state"][begins])
        episodes += begins.sum()
        observation, _, terminated, truncated, _ = envs.step(action)
        ended = terminated | truncated
        begins = ended if mode == gym.vector.AutoresetMode.SAME_STEP else ended_before
        ended_before = ended
        agent.reset(mask=begins)
    assert episodes >= 4
    envs.close()


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ({"state": np.zeros(7)}, r"lacks \['images', 'prompt'\]"),
        ({**observe(), "images": np.zeros((8, 8, 3), np.uint8)}, "expected a dict by camera name"),
        ({**observe(), "state": [[0.0], [0.0, 1.0]]}, "ragged"),
        ({**observe_many([0, 0]), "prompt": "touch it"}, "expected a sequence of texts"),
        ({**observe_many([0, 0]), "prompt": ("touch it",)}, "expected equal ones"),
        ({**observe_many([0, 0]), "images": observe()["images"]}, "expected equal ones"),
        ({**observe(), "state": np.zeros(5)}, r"shape \[5\]; expected \[7\]"),
        ((observe(), {}), r"is tuple; expected a dict with \['images', .*env.reset\(\) and env.step\(\) return first"),
        (None, "is NoneType; expected a dict"),
    ],
)
def test_a_bad_observation_is_refused(observation: Any, words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        Pi0Agent(HoldPolicy(ARM6)).get_action(observation)


class SeeingPolicy(CountingPolicy):
    """Wants every camera."""

    def check(self, observation: Observation) -> None:
        super().check(observation)
        if set(observation.images) != set(ARM6.cameras):
            raise ObservationError("A camera is missing.")


@pytest.mark.parametrize(
    "change",
    [
        {"state": np.full(7, np.nan, np.float32)},
        {"state": np.zeros(3)},
        {"images": {}},
        {"prompt": np.array(["touch", "it"])},
        {"prompt": " "},
    ],
)
def test_an_observation_between_chunks_is_refused_too_and_played_on_after(change: dict[str, Any]) -> None:
    agent = Pi0Agent(SeeingPolicy())
    agent.get_action(observe(0))
    with pytest.raises(ObservationError):
        agent.get_action({**observe(0), **change})
    assert agent.get_action(observe(10))[0] == 1


def test_every_row_of_a_vector_observation_is_checked_between_chunks() -> None:
    agent = Pi0Agent(CountingPolicy())
    agent.get_action(observe_many([0, 0]))
    with pytest.raises(ObservationError, match="not finite"):
        agent.get_action(observe_many([0, np.nan]))


def test_a_refused_first_observation_fixes_nothing() -> None:
    agent = Pi0Agent(CountingPolicy())
    with pytest.raises(ObservationError):
        agent.get_action(observe_many([np.nan, 0], ("go", "tap it")))
    assert agent.get_action(observe_many([1, 2, 3]))[:, 0].tolist() == [1, 2, 3]


def test_a_chunk_that_starts_late_is_refused() -> None:
    class LatePolicy(CountingPolicy):
        def infer_batch(
            self, observations: Sequence[Observation], *, noise: NDArray[np.float32] | None = None
        ) -> list[ActionChunk]:
            first, *rest = super().infer_batch(observations)
            return [first, *(ActionChunk(chunk.actions, chunk.start_s + 1, chunk.dt_s) for chunk in rest)]

    with pytest.raises(ObservationError, match=r"environments \[1, 2\]; expected the policy's chunk to start"):
        Pi0Agent(LatePolicy()).get_action(observe_many([0, 0, 0]))


def test_a_refused_observation_leaves_the_agent_as_it_was() -> None:
    agent = Pi0Agent(CountingPolicy())
    agent.get_action(observe(0))
    with pytest.raises(ObservationError):
        agent.get_action({"state": np.zeros(7)})
    assert agent.get_action(observe(10))[0] == 1


def test_the_number_of_environments_changes_at_reset_only() -> None:
    agent = Pi0Agent(CountingPolicy())
    agent.get_action(observe_many([0, 0]))
    with pytest.raises(ObservationError, match="Got 3 observations; expected 2"):
        agent.get_action(observe_many([0, 0, 0]))
    with pytest.raises(ConfigError, match=r"shape \[3\]; expected \[2\]"):
        agent.reset(mask=[True, False, False])
    agent.reset()
    assert agent.get_action(observe_many([0, 0, 0])).shape == (3, 7)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(CheckpointError, match="No policy 'none'"):
        Pi0Agent.from_pretrained("none")


def play(agent: Pi0Agent, steps: int) -> list[float]:
    """The first joint's targets; the state is ten times the step, so its chunk is 10 k, 10 k + 1, .."""
    return [float(agent.get_action(observe(10 * step))[0]) for step in range(steps)]


def test_while_inference_takes_time_the_measured_state_is_returned_and_it_says_so() -> None:
    agent = Pi0Agent(CountingPolicy(execution_horizon=3), latency_steps=2)
    held, actions = [], []
    for step in range(7):
        actions.append(agent.get_action(observe(10 * step))[0])
        held.append(agent.is_holding.tolist())
    assert actions == [0, 10, 0, 1, 2, 50, 60]
    assert held == [[True], [True], [False], [False], [False], [True], [True]]
    assert agent.players[0].reason == "chunk exhausted"


def test_a_chunk_inferred_meanwhile_is_played_from_the_action_meant_for_now() -> None:
    agent = Pi0Agent(CountingPolicy(execution_horizon=3), chunking=ChunkingConfig("async"), latency_steps=2)
    assert play(agent, 11) == [0, 10, 0, 1, 2, 3, 4, 52, 53, 54, 82]
    assert agent.players[0].last_delay == 2


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
    assert actions == [[10, 10], [0, 20], [1, 10]]
    agent.get_action(observe_many([40, 40]))
    agent.reset()
    assert play(agent, 3) == [0, 10, 0]


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
