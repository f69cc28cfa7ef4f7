from collections.abc import Sequence

import numpy as np
import pytest

from pi0_control.errors import ConfigError
from sims.record import SCENES, SCENES_PROMPT, Disturbance, record
from sims.scene import BLOCK_COLOURS
from sims.tabletop_env import TabletopEnv
from sims.tasks import TASKS


class MemoryWriter:
    """Keeps episodes in memory."""

    def __init__(self) -> None:
        self.episodes: list[dict] = []
        self.frames: list[tuple] = []

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    @property
    def episode_length(self) -> int:
        return len(self.frames)

    def add_frame(self, images, state, action, objects) -> None:
        self.frames.append((images, np.array(state), np.array(action), np.array(objects)))

    def save_episode(self, prompt: str, targets: Sequence[int] = ()) -> int:
        self.episodes.append({"prompt": prompt, "targets": list(targets), "frames": self.frames})
        self.frames = []
        return len(self.episodes) - 1

    def discard_episode(self) -> None:
        self.frames = []


def demonstrate(episodes: int, seed: int = 0, disturbance: Disturbance | None = None) -> MemoryWriter:
    writer = MemoryWriter()
    record(("Reach", "Lift"), episodes, seed, writer, disturbance)
    return writer


def test_target_is_the_block_the_prompt_names() -> None:
    writer = demonstrate(6)
    colours = list(BLOCK_COLOURS)
    assert len(writer.episodes) >= 6
    for episode in writer.episodes:
        named = [colours[target] for target in episode["targets"]]
        assert named == [word for word in episode["prompt"].split() if word in colours]
        assert len(episode["frames"]) >= 2


def test_recording_is_a_function_of_the_seed() -> None:
    one, same, other = demonstrate(2), demonstrate(2), demonstrate(2, seed=1)
    actions = [np.stack([frame[2] for frame in writer.episodes[0]["frames"]]) for writer in (one, same)]
    np.testing.assert_array_equal(*actions)
    assert not np.array_equal(one.episodes[0]["frames"][0][3], other.episodes[0]["frames"][0][3])


def test_no_recorded_scene_is_that_of_an_environment_seed() -> None:
    world = TabletopEnv("Reach").world
    for seed in (0, 1, 100_000):
        world.reset(np.random.default_rng(seed))
        scene = world.block_positions()
        assert not np.allclose(demonstrate(1, seed).episodes[0]["frames"][0][3], scene, atol=1e-3)


def test_number_of_episodes_is_exact() -> None:
    assert [demonstrate(count).num_episodes for count in (1, 2, 5)] == [1, 2, 5]


def test_calm_demonstrations_reach_every_goal() -> None:
    calm = Disturbance(push_rad=0.0, new_goal=0.0)
    writer = demonstrate(3, disturbance=calm)
    for episode in writer.episodes:
        is_lift = episode["prompt"].split()[0] in {wording.split()[0] for wording in TASKS["Lift"].wordings}
        height = episode["frames"][-1][3][episode["targets"][0], 2]
        assert not is_lift or height > 0.1


def test_the_expert_takes_over_where_a_pilot_left() -> None:
    class Reacher:
        """Goes to one pose, whatever it sees."""

        pose = TabletopEnv().robot.home + np.float32([1.2, 0, 0, 0, 0, 0, 0])

        def reset(self, seed: int | None = None) -> None:
            pass

        def get_action(self, observation: object) -> np.ndarray:
            return self.pose

    alone, piloted = MemoryWriter(), MemoryWriter()
    record(("Reach",), 4, 0, alone)
    record(("Reach",), 4, 0, piloted, make_pilot=lambda env: Reacher())
    turned = [[episode["frames"][0][1][0] for episode in writer.episodes] for writer in (alone, piloted)]
    assert max(turned[1]) > Reacher.pose[0] - 0.1 > max(turned[0])


def test_scenes_show_every_block_somewhere_else_in_each_frame() -> None:
    writer = MemoryWriter()
    record((SCENES,), 1, 0, writer)
    (episode,) = writer.episodes
    places = np.stack([frame[3] for frame in episode["frames"]])
    assert (episode["prompt"], episode["targets"]) == (SCENES_PROMPT, [])
    assert places.shape == (100, 3, 3)
    assert (places[:, :, :2].std(0) > 0.03).all()


def test_scenes_are_not_mixed_with_tasks() -> None:
    with pytest.raises(ConfigError, match="recorded alone"):
        record((SCENES, "Reach"), 1, 0, MemoryWriter())
