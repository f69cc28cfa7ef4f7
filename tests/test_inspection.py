"""Planted faults are found and named; a sound dataset has none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policy_parts import TINY
from recordings import LAYOUTS, ROBOT, SIZE, record_three, shade

from pi0_control.errors import DatasetError
from pi0_control.policy import PolicyConfig
from pi0_control.train.dataset import Dataset
from pi0_control.train.inspection import Glimpse, check_numbers, find_camera_problems, find_problems, glimpse
from pi0_control.train.video import VideoWriter


@pytest.fixture
def sound(tmp_path: Path) -> Dataset:
    dataset = Dataset.open(record_three(tmp_path))
    states = np.linspace((-1, 0), (1, 1), len(dataset)).astype(np.float32)
    return replace(dataset, states=states, actions=states + np.float32(0.1))


def with_action(dataset: Dataset, values: np.ndarray) -> Dataset:
    """The dataset with other numbers for the gripper."""
    return replace(dataset, actions=np.stack([dataset.actions[:, 0], values], 1).astype(np.float32))


def test_a_sound_dataset_has_no_problems(sound: Dataset):
    assert find_problems(sound) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: with_action(d, np.ones(9)), "action grip: constant."),
        (lambda d: with_action(d, np.linspace(0, 1e-5, 9)), "action grip: tiny span: 9.8e-06 between q01 and q99."),
        (lambda d: with_action(d, [*np.linspace(0, 1, 8), np.nan]), "action grip: 1 frames are not finite."),
        (lambda d: with_action(d, np.full(9, np.inf)), "action grip: 9 frames are not finite."),
        (lambda d: with_action(d, d.states[:, 1]), "action grip: the same as the state."),
        (lambda d: replace(d, actions=d.states), "there is nothing to imitate"),
        (
            lambda d: replace(d, timestamps=d.timestamps * 2),
            "6 of 6 time steps are not the 50.0 ms of 20 fps: 100.0",
        ),
        (lambda d: replace(d, timestamps=d.timestamps + 1), "3 episodes do not begin at time 0"),
        (lambda d: replace(d, tasks=("task 4", " ", "task 3")), "1 episodes have a blank instruction, the first is 1"),
        (lambda d: replace(d, features={**d.features, "action": {"shape": [2]}}), "action: its numbers have no names."),
        (lambda d: replace(d, cameras=()), "No camera; the features are ['action', "),
    ],
)
def test_a_planted_fault_is_named(sound: Dataset, change, message):
    assert any(message in problem for problem in find_problems(change(sound)))


SIGN, UNIT = np.array([-1, 1]), np.array([180 / np.pi, 100])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, a: (s, a - s), "actions are distances: actions swing, grip: they change "),
        (lambda s, a: (s, a * UNIT), "actions in other units: actions swing, grip: they change "),
        (
            lambda s, a: (s, np.stack([a[:, 0], 1 - a[:, 1]], 1)),
            "actions of the other sign: actions grip: they change -",
        ),
        (
            lambda s, a: (s, a * SIGN),
            "actions of the other sign: actions swing: they change -1 times as much as the sta",
        ),
        (lambda s, a: (s * UNIT, a * UNIT), "observation.state swing: -68.8 to 68.8: no radians, metres or opening"),
    ],
    ids=["distances", "degrees", "gripper inverted", "sign", "degrees in both"],
)
def test_numbers_that_no_policy_learns_from_are_named_and_refused(sound: Dataset, change, message):
    """States lag two steps behind targets; every episode is another swing."""
    episode, step = np.divmod(np.arange(360), 60)
    targets = np.stack([1.2 * np.sin(step / 7 + episode), 0.5 + 0.5 * np.sin(step / 9 + episode)], 1)
    states = np.stack([1.2 * np.sin((step - 2) / 7 + episode), 0.5 + 0.5 * np.sin((step - 2) / 9 + episode)], 1)
    policy = PolicyConfig.for_robot(ROBOT, TINY)
    times = {"timestamps": step / 20, "episode_index": episode, "episodes": ()}
    whole = replace(sound, states=states, actions=targets, **times)
    assert find_problems(whole) == []
    check_numbers(whole, policy)
    wrong = replace(whole, **dict(zip(("states", "actions"), change(states, targets), strict=True)))
    assert any(problem.startswith(message) for problem in find_problems(wrong)), find_problems(wrong)
    with pytest.raises(DatasetError, match=r"actions|beyond limits"):
        check_numbers(wrong, policy)


def test_rates_are_no_targets_and_actions_may_be_of_the_commanded_joints_alone(sound: Dataset):
    episode, step = np.divmod(np.arange(360), 60)
    swing, grip = np.sin(step / 7 + episode), 0.5 + 0.5 * np.sin(step / 9 + episode)
    states, rates = np.stack([swing, grip], 1), np.stack([np.cos(step / 7 + episode), grip], 1)
    whole = replace(sound, states=states, actions=rates, episode_index=episode)
    check_numbers(whole, PolicyConfig.for_robot(ROBOT, TINY, "joint_absolute", rates=("swing",)))
    alone = PolicyConfig.for_robot(ROBOT, TINY, "joint_absolute", uncommanded=("swing",))
    check_numbers(replace(whole, actions=rates[:, 1:]), alone)
    with pytest.raises(DatasetError, match="of the other sign: actions grip"):
        check_numbers(replace(whole, actions=-rates[:, 1:]), alone)


def test_values_far_outside_the_quantiles_are_counted(tmp_path: Path):
    dataset = Dataset.open(record_three(tmp_path))
    states = np.tile(np.linspace(0, 1, 200, dtype=np.float32)[:, None], 2)
    states[7, 1] = 50
    long = replace(dataset, states=states, actions=states + 1, cameras=(), episodes=(), timestamps=np.zeros(200))
    remarks = [problem for problem in find_problems(replace(long, episode_index=np.arange(200))) if "range" in problem]
    assert [remark.split(":")[0] for remark in remarks] == ["observation.state grip", "action grip"]
    assert "1 frames far out of range: up to" in remarks[0]


def test_missing_and_short_videos_are_named(sound: Dataset):
    first, second = (episode.images["top"].path for episode in sound.episodes[:2])
    first.unlink()
    video = VideoWriter(second, SIZE, 20)
    video.write(shade(0, 0))
    video.close()
    missing, short = find_problems(sound)
    assert missing == f"No video {first}, although the dataset's metadata names it."
    assert short == f"Video {second} has 1 frames; its episodes need 2."
    assert glimpse(sound)[0].images["top"] == ()
    assert "Camera top: no image of episode 0 can be read." in find_camera_problems(glimpse(sound))


@pytest.mark.parametrize("rewrite", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_glimpse_spans_every_layout(tmp_path: Path, rewrite):
    rewrite(record_three(tmp_path))
    looks = glimpse(Dataset.open(tmp_path), episodes=2, moments=3)
    assert [(look.episode.index, look.prompt, look.steps) for look in looks] == [
        (0, "task 4", (0, 2, 3)),
        (2, "task 3", (0, 1, 2)),
    ]
    np.testing.assert_allclose(looks[1].images["wrist"][1][8, 8], shade(1, 1)[8, 8], atol=6)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.zeros((3, 8, 8, 3)), ["Camera top: dark."]),
        (np.full((3, 8, 8, 3), 90), ["Camera top: every image is of one plain colour."]),
        (np.tile(np.arange(192).reshape(8, 8, 3), (3, 1, 1, 1)), ["Camera top: the same image throughout."]),
        (np.random.default_rng(0).integers(256, size=(3, 8, 8, 3)), []),
    ],
)
def test_cameras_that_show_nothing_are_named(sound: Dataset, images, expected):
    look = Glimpse(sound.episodes[0], "task 4", (0, 1, 2), {"top": list(images.astype(np.uint8))})
    assert find_camera_problems([look]) == expected
