import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sims  # noqa: F401  registers the environments
from pi0_control.errors import ConfigError, RenderError
from sims.tabletop_env import TabletopEnv
from sims.tasks import TASKS, Goal


# Gymnasium advises actions in [-1, 1]; ours are joint angles with the robot's true limits.
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space.*")
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_gymnasium_accepts_the_environment(task) -> None:
    env = gym.make(f"sims:{task.env_id}", render_mode="rgb_array").unwrapped
    check_env(env, skip_render_check=True)  # that would try "human" too, which needs a display


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_registered_environment_gives_what_its_spaces_promise(task) -> None:
    env = gym.make(f"sims:{task.env_id}")
    observation, info = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    assert set(observation) == {"images", "state", "prompt"}
    assert set(observation["images"]) == {"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"}
    assert all(image.shape == (224, 224, 3) and image.dtype == np.uint8 for image in observation["images"].values())
    assert env.action_space.shape == (7,)
    assert info["is_success"] is False
    observation, reward, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert reward == 0.0
    env.close()


def test_action_limits_are_those_of_the_robot() -> None:
    env = TabletopEnv()
    np.testing.assert_array_equal(env.action_space.low, env.robot.lower)
    np.testing.assert_array_equal(env.action_space.high, env.robot.upper)


def test_same_seed_and_actions_give_the_same_episode() -> None:
    episodes = []
    for _ in range(2):
        env = TabletopEnv("Lift")
        observation, _ = env.reset(seed=11)
        env.action_space.seed(5)
        rows = [observation]
        rows += [env.step(env.action_space.sample())[0] for _ in range(5)]
        episodes.append(rows)
        env.close()
    for one, other in zip(*episodes, strict=True):
        assert one["prompt"] == other["prompt"]
        np.testing.assert_array_equal(one["state"], other["state"])
        for name, image in one["images"].items():
            np.testing.assert_array_equal(image, other["images"][name])


def test_seeds_change_scene_and_instruction() -> None:
    env = TabletopEnv("Stack")
    prompts = {env.reset(seed=seed)[0]["prompt"] for seed in range(6)}
    assert len(prompts) > 2
    env.close()


def test_a_goal_can_be_asked_for() -> None:
    env = TabletopEnv("Lift")
    observation, info = env.reset(seed=0, options={"goal": Goal("green", None, "lift the green cube")})
    assert observation["prompt"] == "lift the green cube"
    assert info["target_block"] == "green"
    env.close()


def test_time_limit_truncates() -> None:
    env = gym.make("sims:pi0_control/Reach-v0", max_episode_steps=2)
    env.reset(seed=0)
    hold = env.unwrapped.robot.home
    assert env.step(hold)[3] is False
    assert env.step(hold)[3] is True
    env.close()


@pytest.mark.parametrize("vectorization_mode", ["sync", "async"])
def test_vector_environments(vectorization_mode) -> None:
    kwargs = {"shared_memory": False, "context": "spawn"} if vectorization_mode == "async" else {}
    envs = gym.make_vec(
        "sims:pi0_control/Reach-v0", num_envs=2, vectorization_mode=vectorization_mode, vector_kwargs=kwargs
    )
    observation, _ = envs.reset(seed=7)
    single = TabletopEnv("Reach")
    for index in range(2):
        alone, _ = single.reset(seed=7 + index)
        assert observation["prompt"][index] == alone["prompt"]
        np.testing.assert_array_equal(observation["state"][index], alone["state"])
        np.testing.assert_array_equal(observation["images"]["base_0_rgb"][index], alone["images"]["base_0_rgb"])
    assert envs.step(envs.action_space.sample())[0]["state"].shape == (2, 7)
    envs.close()
    single.close()


def test_shared_memory_is_refused_rather_than_giving_stale_prompts() -> None:
    with pytest.raises(ValueError, match="shared_memory=False"):
        gym.make_vec("sims:pi0_control/Reach-v0", num_envs=2, vectorization_mode="async")


@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("Lift", Goal("purple", None, "lift the purple block")),
        ("Stack", Goal("red", None, "stack the red block")),
        ("Lift", Goal("red", "green", "lift the red block")),
    ],
)
def test_goals_that_the_scene_cannot_offer_are_refused(task, goal) -> None:
    with pytest.raises(ConfigError, match=f"no goal of {task}; the blocks are red, green, blue"):
        TabletopEnv(task).reset(seed=0, options={"goal": goal})


def test_rgb_array_is_a_picture_of_the_scene() -> None:
    env = TabletopEnv(render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 20
    env.close()


def test_human_mode_without_display_is_refused_in_one_sentence(monkeypatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RenderError, match="DISPLAY is not set; use 'rgb_array'"):
        TabletopEnv(render_mode="human").reset(seed=0)


@pytest.mark.parametrize(
    ("action", "message"), [(np.zeros(6, np.float32), "7 finite joint targets"), (np.full(7, np.nan), "7 finite")]
)
def test_wrong_actions_are_refused(action, message) -> None:
    env = TabletopEnv()
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=message):
        env.step(action)
    env.close()


def test_unknown_task_and_render_mode_are_refused() -> None:
    with pytest.raises(ConfigError, match="No task 'Fold'"):
        TabletopEnv("Fold")
    with pytest.raises(ConfigError, match="render_mode 'ansi'"):
        TabletopEnv(render_mode="ansi")
    with pytest.raises(gym.error.ResetNeeded):
        TabletopEnv().step(np.zeros(7, np.float32))
