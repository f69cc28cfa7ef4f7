"""``pi0 doctor`` on what the bundled robot records: silent on it, and loud on the same with a fault."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from bags import SECOND, image, joints, write_bag
from public_policies import PI0, openpi_policy, plain_stats

from pi0_control import cli
from pi0_control.doctor.targets import Slopes, unlike_states
from pi0_control.policy import NormStats
from pi0_control.policy.pretrained import CONFIG_FILE, STATS_FILE, find_policy
from pi0_control.train.dataset import Dataset
from pi0_control.train.inspection import find_problems
from pi0_control.train.pictures import read_moments


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of the scripted expert on the robot of the bundled policy."""
    root = tmp_path_factory.mktemp("recorded") / "demos"
    cli.SUBCOMMANDS["record"](task=("all",), episodes=4, seed=3, out=root)
    return root


def doctor(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code, and what was printed."""
    monkeypatch.setattr(sys, "argv", ["pi0", "doctor", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_bundled_policy_fits_what_its_robot_records(recorded, monkeypatch, capsys) -> None:
    code, printed = doctor(monkeypatch, capsys, "mini", "--data", str(recorded))
    assert "4 episodes" in printed
    assert "Nothing suspicious." in printed
    assert code == 0
    assert doctor(monkeypatch, capsys, "mini")[0] == 0


def test_actions_that_its_robot_records_are_targets_in_every_episode(recorded) -> None:
    dataset = Dataset.open(recorded)
    for episode in range(len(dataset.episodes)):
        chosen = dataset.episode_index == episode
        slopes = Slopes.of(dataset.states[chosen], dataset.actions[chosen], dataset.episode_index[chosen])
        assert [*unlike_states(slopes, dataset.features["action"]["names"])] == []
    assert [problem for problem in find_problems(dataset) if "actions" in problem] == []


def test_faults_of_a_dataset_are_named(recorded, tmp_path, monkeypatch, capsys) -> None:
    root = shutil.copytree(recorded, tmp_path / "demos")
    info = json.loads((root / "meta" / "info.json").read_text())
    names = ["waist", "elbow", "shoulder", "forearm", "wrist", "tool", "gripper"]
    info["features"]["observation.state"]["names"] = names
    (root / "meta" / "info.json").write_text(json.dumps(info | {"fps": 10}))
    code, printed = doctor(monkeypatch, capsys, "mini", "--data", str(root))
    assert code == 1
    assert "joint order" in printed
    assert "20 Hz" in printed
    assert "Errors: " in printed


def as_bag(path: Path, recorded: Path, encoding: str) -> Path:
    """The first episodes as a robot would have published them."""
    dataset = Dataset.open(recorded)
    messages: dict[str, list] = {}
    step = SECOND // dataset.fps
    for index, (state, action) in enumerate(zip(dataset.states, dataset.actions, strict=True)):
        stamp = SECOND + step * (index + 100 * int(dataset.episode_index[index]))
        names = ["another", *dataset.features["action"]["names"]]
        messages.setdefault("/joint_states", []).append(joints(stamp, names, [0, *state]))
        messages.setdefault("/joint_commands", []).append(joints(stamp, names, [0, *action]))
    for camera in dataset.cameras:
        for episode in dataset.episodes:
            steps = list(range(0, episode.length, 8))
            for index, seen in zip(steps, read_moments(episode, camera, dataset.fps, steps), strict=True):
                stamp = SECOND + step * (episode.start + index + 100 * episode.index)
                messages.setdefault(f"/{camera}/image_raw", []).append(image(stamp, seen, encoding))
    return write_bag(path, messages)


@pytest.mark.parametrize(("encoding", "code"), [("rgb8", 0), ("bgr8", 1)])
def test_a_bag_whose_images_say_a_wrong_encoding_shows_it(recorded, tmp_path, monkeypatch, capsys, encoding, code):
    assert json.loads((find_policy("mini") / CONFIG_FILE).read_text())["camera_stats"].keys() >= {"base_0_rgb"}
    bag = as_bag(tmp_path / "bag", recorded, encoding)
    got, printed = doctor(monkeypatch, capsys, "mini", "--data", str(bag))
    assert (got, "swapped channels" in printed) == (code, code == 1), printed
    assert ("Nothing suspicious." in printed) == (code == 0)


def test_a_public_checkpoint_is_examined_by_its_own_statistics(recorded, tmp_path, monkeypatch, capsys) -> None:
    stats = NormStats.load(find_policy("mini") / STATS_FILE)
    checkpoint = openpi_policy(tmp_path / "public", PI0, {"ours": stats, "another": plain_stats(7, 7)})
    settings = {"robot": "arm6", "action_space": "joint_delta", "model": {"action_horizon": 16}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    arguments = (str(checkpoint), "--policy-config", str(tmp_path / "settings.json"), "--data", str(recorded))
    assert doctor(monkeypatch, capsys, *arguments)[0] == 2  # which statistics?
    code, printed = doctor(monkeypatch, capsys, *arguments, "--asset", "ours")
    assert (code, "Nothing suspicious." in printed) == (0, True), printed
    code, printed = doctor(monkeypatch, capsys, *arguments, "--asset", "another")
    assert code == 1
    assert "out of range" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["mini", "--data", "nowhere"], "No dataset or rosbag nowhere."),
        (["mini", "--data", "."], "is neither a LeRobotDataset nor a rosbag that can be read"),
        (["mini", "--cameras", "top", "x"], "the robot has no such camera; it has ['base_0_rgb'"),
        (["mini", "--robot", "ur5e"], "made for robot 'arm6' and does not fit 'ur5e'"),
    ],
)
def test_user_mistakes_are_one_sentence_and_exit_2(arguments, message, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = doctor(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
