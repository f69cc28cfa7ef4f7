import numpy as np
import pytest

from pi0_control.errors import ConfigError
from sims.live import LiveTabletop
from sims.tabletop_env import TabletopEnv


@pytest.fixture
def live():
    robot = LiveTabletop()
    yield robot
    robot.close()


def period(live: LiveTabletop) -> None:
    for _ in range(round(live.robot.dt_s / live.servo_period_s)):
        live.advance()


def test_commanded_once_a_period_it_is_the_environment_bit_for_bit(live) -> None:
    env = TabletopEnv("Lift", perturb="camera")
    observation, _ = env.reset(seed=5)
    live.reset("Lift", "camera", seed=5)
    assert live.prompt == observation["prompt"]
    rng = np.random.default_rng(0)
    for _ in range(4):
        action = rng.uniform(env.robot.lower, env.robot.upper).astype(np.float32)
        observation = env.step(action)[0]
        live.aim(action)
        period(live)
        assert np.array_equal(live.state, observation["state"])
        assert all(np.array_equal(image, observation["images"][name]) for name, image in live.images().items())
    env.close()


def test_between_periods_it_moves_on_the_way_to_the_target_and_stands_there(live) -> None:
    live.reset("Reach", seed=0)
    start = live.set_point
    target = start - 0.2 * live.robot.max_velocity * live.robot.dt_s
    live.aim(target)
    live.advance()
    assert np.allclose(live.set_point, start + (target - start) / 5, atol=1e-6)
    period(live)
    assert np.allclose(live.set_point, target, atol=1e-6)
    live.aim(start, duration_s=10 * live.servo_period_s)
    live.advance()
    assert np.allclose(live.set_point, target + (start - target) / 10, atol=1e-6)


def test_an_episode_is_over_when_its_time_is_up_and_the_world_goes_on(live) -> None:
    live.reset("Reach", seed=0)
    limit = live.env.task.max_episode_steps
    for _ in range(limit + 1):
        period(live)
    assert live.episode == {
        "task": "Reach",
        "perturb": "none",
        "seed": 0,
        "prompt": live.prompt,
        "steps": limit,
        "is_success": False,
        "is_over": True,
    }
    live.reset("Reach", seed=0)
    assert not live.episode["is_over"]


def test_a_wrong_name_is_refused(live) -> None:
    with pytest.raises(ConfigError, match="Dance"):
        live.check("Dance", "none")
    with pytest.raises(ConfigError, match="fog"):
        live.check("Reach", "fog")
