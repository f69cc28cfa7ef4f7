import dataclasses
import re
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from tiny_policy import ARM6, tiny_policy

from pi0_control.errors import ConfigError, ObservationError
from pi0_control.types import Observation
from sims.controls import deprive, find_cameras, instruct, without_cameras
from sims.simulator import BlindEnv
from sims.tasks import TASKS

BASE, LEFT, RIGHT = ARM6.cameras


@pytest.fixture(params=TASKS)
def env(request) -> Iterator[BlindEnv]:
    with closing(BlindEnv(request.param)) as env:
        yield env


def colours(env: BlindEnv, prompt: str) -> list[str]:
    return re.findall("|".join(env.world.blocks), prompt)


def test_a_swap_asks_for_another_block_of_the_same_scene_in_the_same_words(env) -> None:
    for seed in range(30):
        env.reset(seed=seed)
        drawn, blocks = env.goal, env.world.block_positions()
        goal, prompt = instruct(env, "swapped", seed)
        assert (env.world.block_positions() == blocks).all()
        assert (goal, prompt) == instruct(env, "swapped", seed)
        assert goal.block != drawn.block
        assert prompt == goal.prompt
        assert colours(env, prompt) == [goal.block, *([goal.onto] if goal.onto else [])]
        assert re.sub("|".join(env.world.blocks), "", prompt) == re.sub("|".join(env.world.blocks), "", drawn.prompt)
        env.reset(seed=seed, options={"goal": goal})


def test_shuffled_words_name_the_goal_as_often_as_chance(env) -> None:
    named = 0
    for seed in range(90):
        env.reset(seed=seed)
        drawn = env.goal
        goal, prompt = instruct(env, "shuffled", seed)
        assert goal == drawn
        named += colours(env, prompt)[0] == goal.block
    assert 15 <= named <= 45  # 30 expected, +- 3.4 standard deviations


def test_the_original_stays(env) -> None:
    assert instruct(env, "original", 3) == (None, None)


def test_who_is_deprived_sees_other_words_and_fewer_cameras() -> None:
    observation = {"images": dict.fromkeys(ARM6.cameras, 1), "state": 2, "prompt": "touch it"}
    expected = {"images": {BASE: 1, RIGHT: 1}, "state": 2, "prompt": "lift it"}
    assert deprive(observation, "lift it", (LEFT,)) == expected
    assert deprive(observation, None, ()) == observation


@pytest.mark.usefixtures("one_thread")
def test_a_policy_goes_without_cameras_only_where_it_was_told() -> None:
    images = {name: np.full((8, 8, 3), 90, np.uint8) for name in ARM6.cameras}
    noise = np.ones((6, 7), np.float32)
    policy = tiny_policy()
    half_blind, blind = without_cameras(policy, (LEFT,)), without_cameras(policy, ARM6.cameras)
    full = Observation(images, np.zeros(7, np.float32), "touch the red block")
    lacking = dataclasses.replace(full, images={BASE: images[BASE], RIGHT: images[RIGHT]})
    nothing = dataclasses.replace(full, images={})
    for told, shown in ((policy, lacking), (half_blind, nothing)):
        with pytest.raises(ObservationError, match="lacks"):
            told.infer(shown)
    chunks = [
        told.infer(shown, noise=noise) for told, shown in ((policy, full), (half_blind, lacking), (blind, nothing))
    ]
    assert not np.array_equal(chunks[0].actions, chunks[1].actions)
    assert not np.array_equal(chunks[1].actions, chunks[2].actions)
    np.testing.assert_array_equal(half_blind.infer(full, noise=noise).actions, chunks[0].actions)
    other = dataclasses.replace(nothing, images={name: image + 50 for name, image in images.items()})
    assert not np.array_equal(policy.infer(other, noise=noise).actions, chunks[0].actions)


def test_cameras_are_found_by_name_or_all() -> None:
    assert find_cameras((RIGHT, BASE), ARM6.cameras) == (BASE, RIGHT)
    assert find_cameras(("all",), ARM6.cameras) == ARM6.cameras
    assert find_cameras((), ARM6.cameras) == ()
    with pytest.raises(ConfigError, match=r"No camera 'top'; the cameras are base_0_rgb, .*, or all"):
        find_cameras(("top",), ARM6.cameras)
