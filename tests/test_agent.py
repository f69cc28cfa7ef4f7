from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from counting_policy import ARM6, CountingPolicy, observe, observe_many
from numpy.typing import NDArray

from pi0_control.control import Pi0Agent
from pi0_control.errors import CheckpointError, ConfigError, ObservationError
from pi0_control.policy import HoldPolicy
from pi0_control.types import ActionChunk, Observation


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
    with pytest.raises(ObservationError, match=r"Environment 1 of 2: .*not finite"):
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


@pytest.mark.parametrize("mask", [[0, 1], [1.0, 0.0], [], ["True", "False"]])
def test_a_reset_mask_says_yes_or_no_to_each_environment(mask: Any) -> None:
    policy = CountingPolicy()
    agent = Pi0Agent(policy)
    agent.get_action(observe_many([0, 0]))
    with pytest.raises(ConfigError, match="expected True or False for each environment"):
        agent.reset(seed=1, mask=mask)
    assert policy.seeds == []  # nothing was reset
    agent.reset(mask=np.array([False, True]))
    assert agent.get_action(observe_many([10, 10]))[:, 0].tolist() == [1, 10]


def test_a_reset_forgets_what_was_commanded() -> None:
    agent = Pi0Agent(CountingPolicy())
    agent.get_action(observe())
    agent.reset()
    assert (agent.commands, agent.seam_jumps) == ([], [])


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(CheckpointError, match="No policy 'none'"):
        Pi0Agent.from_pretrained("none")
