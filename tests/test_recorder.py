from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from tiny_policy import ARM6, tiny_policy

from pi0_control.control import ChunkingConfig, Pi0Agent
from pi0_control.control.adapters import ur5
from pi0_control.control.mapping import EnvironmentMapping
from pi0_control.control.recorder import Recorder, Recording, replay
from pi0_control.errors import ConfigError, DatasetError, ObservationError
from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec

SHAPES = dict(zip(ARM6.cameras, [(8, 8, 3), (6, 9, 3), (5, 4, 3)], strict=True))


def observe(rng: np.random.Generator, count: int | None = None) -> dict[str, Any]:
    rows = () if count is None else (count,)
    return {
        "images": {name: rng.integers(0, 256, (*rows, *shape), np.uint8) for name, shape in SHAPES.items()},
        "state": rng.uniform(-0.1, 0.1, (*rows, 7)).astype(np.float32),
        "prompt": "touch it" if count is None else tuple(f"touch {row}" for row in range(count)),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return np.asarray(one).dtype == np.asarray(other).dtype and np.array_equal(one, other)


@pytest.mark.parametrize(
    ("chunking", "latency"),
    [
        (ChunkingConfig(), 0),
        (ChunkingConfig(), 2),
        (ChunkingConfig(strategy="async", execution_horizon=2), [0, 1, 3]),
        (ChunkingConfig(strategy="rtc", execution_horizon=2), [1, 2]),
    ],
    ids=["sync", "late", "async", "rtc"],
)
def test_a_replay_is_bit_identical(chunking: ChunkingConfig, latency: int | Sequence[int], tmp_path: Path) -> None:
    policy, rng, actions = tiny_policy(), np.random.default_rng(0), []
    agent = Pi0Agent(policy, chunking=chunking, latency_steps=latency)
    agent.get_action(observe(rng))  # the noise of earlier episodes leaves no trace
    with Recorder(agent, tmp_path) as recorder:
        recorder.reset(seed=5)
        actions = [recorder.get_action(observe(rng)) for _ in range(14)]
    other = Pi0Agent(tiny_policy(), chunking=chunking, latency_steps=latency)
    again = replay(tmp_path / "episode_000000.npz", other)
    np.testing.assert_array_equal(again, actions)
    assert again[0].dtype == np.float32


def test_a_vector_environment_is_replayed_with_its_resets(tmp_path: Path) -> None:
    rng, actions = np.random.default_rng(0), []
    recorder = Recorder(Pi0Agent(tiny_policy(), latency_steps=[0, 1]), tmp_path)
    for step in range(9):
        if step in (3, 5):
            recorder.reset(seed=step if step == 5 else None, mask=[step == 3, True])
        actions.append(recorder.get_action(observe(rng, 2)))
    path = recorder.save()
    assert path is not None
    np.testing.assert_array_equal(replay(path, Pi0Agent(tiny_policy(), latency_steps=[0, 1])), actions)
    assert Recording.load(path).about["resets"] == [[0, 0, None], [3, None, [True, True]], [5, 5, [False, True]]]


@pytest.mark.parametrize("count", [None, 2])
def test_the_file_holds_everything_as_it_was(count: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recorder = Recorder(Pi0Agent(HoldPolicy(ARM6, 4), latency_steps=1), tmp_path)
    seen = [observe(rng, count) | {"extra": np.full((2, 2), step)} for step in range(5)]
    actions = [recorder.get_action(observation) for observation in seen]
    path = recorder.save(is_success=np.bool_(True))
    assert path is not None
    recording = Recording.load(path)
    assert len(recording) == 5
    for (observation, action), expected, done in zip(recording.steps(), seen, actions, strict=True):
        assert same(observation, expected)
        assert same(action, done)
    assert recording.about["notes"] == {"is_success": True}
    assert recording.about["timing_ms"] == [[0, {"preprocess": 0.0, "prefix": 0.0, "denoise": 0.0}]]
    assert recording.arrays["status"][:, 0].tolist() == ["holding", *4 * ["tracking"]]
    assert recording.arrays["reason"][:, 0].tolist() == ["no chunk yet", *4 * [""]]
    with np.load(path) as file:  # legible without this package
        np.testing.assert_array_equal(file["observation/state"], [observation["state"] for observation in seen])


def test_an_episode_is_a_file_with_a_seed_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seeds in ([None, 7], [None]):
        with Recorder(Pi0Agent(HoldPolicy(ARM6)), tmp_path) as recorder:
            for seed in seeds:
                recorder.reset(seed)
                recorder.get_action(observe(rng))
            recorder.reset()  # saves; nothing was done since
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"episode_{index:06d}.npz" for index in range(3)]
    assert [Recording.load(file).about["resets"][0][1] for file in files] == [0, 7, 0]


def test_an_episode_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(Pi0Agent(HoldPolicy(ARM6)), tmp_path)
    recorder.get_action(observe(np.random.default_rng(0)))

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"PK")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", full)
        with pytest.raises(OSError, match="No space"):
            recorder.save()
    assert not list(tmp_path.iterdir())
    recorder.get_action(observe(np.random.default_rng(0)))
    path = recorder.save()
    assert path == tmp_path / "episode_000000.npz"
    assert len(Recording.load(path)) == 2  # nothing of it was lost
    assert recorder.save() is None


def test_several_record_into_one_folder(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(0), []
    (tmp_path / "episode_best.npz").write_bytes(b"a name of somebody else's")
    recorders = [Recorder(Pi0Agent(HoldPolicy(ARM6)), tmp_path) for _ in range(2)]
    for seed in range(3):
        for index, recorder in enumerate(recorders):
            recorder.reset(10 * index + seed)
            recorder.get_action(observe(rng))
        paths += [recorder.save() for recorder in recorders]
    assert [path.name for path in paths if path] == [f"episode_{number:06d}.npz" for number in range(6)]
    assert [Recording.load(path).about["resets"][0][1] for path in paths if path] == [0, 10, 1, 11, 2, 12]


def test_what_is_refused_is_not_recorded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recorder = Recorder(Pi0Agent(HoldPolicy(ARM6)), tmp_path)
    seen = observe(rng)
    with pytest.raises(ObservationError, match="one path"):  # at the first step, too
        recorder.get_action({**seen, "a/b": 1.0, "a": {"b": 2.0}})
    recorder.get_action(seen)
    bad: list[tuple[Any, str]] = [
        ({**seen, "state": np.full(7, np.nan, np.float32)}, "not finite"),
        ({**seen, "state": seen["state"].astype(np.float64)}, r"\['observation/state'\] are not as in the episode's"),
        ({**seen, "extra": 1}, "observation/extra"),
        ({**seen, "prompt": object()}, "'observation/prompt' is .*expected numbers or text"),
        (None, "expected numbers or text"),
        ({**seen, 3: 1.0}, r"The observation has the keys \[3\]; expected text"),
        ({**seen, 3: object()}, "'observation/3' is .*expected numbers or text"),
        ({**seen, "a/b": 1.0, "a": {"b": 2.0}}, "Two entries of the observation have one path"),
    ]
    for observation, words in bad:
        with pytest.raises(ObservationError, match=words):
            recorder.get_action(observation)
    recorder.get_action(observe(rng))
    path = recorder.save()
    assert path is not None
    assert len(Recording.load(path)) == 2


def test_another_answer_is_refused_and_can_be_had(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recorder = Recorder(Pi0Agent(tiny_policy()), tmp_path)
    for _ in range(3):
        recorder.get_action(observe(rng))
    path = recorder.save()
    assert path is not None
    late = Pi0Agent(tiny_policy(), latency_steps=1)
    with pytest.raises(DatasetError, match=r"At step 0 of .* the agent's action is not the recorded one"):
        replay(path, late)
    assert len(replay(path, late, must_match=False)) == 3
    with pytest.raises(ConfigError, match="is of robot 'arm6'; the agent drives 'ur5e'"):
        replay(path, Pi0Agent(HoldPolicy(RobotSpec.from_yaml("ur5e"))))


def test_a_mapped_environment_is_recorded_in_its_own_terms(tmp_path: Path) -> None:
    image, wide = spaces.Box(0, 255, (4, 6, 3), np.uint8), spaces.Box(-7, 7, (7,), np.float64)
    seen = {"base_rgb": image, "wrist_rgb": image, "joints": spaces.Box(-1, 1, (6,)), "prompt": spaces.Text(9)}
    space = spaces.Dict({**seen, "gripper": spaces.Box(0, 1, (1,))})
    robot = RobotSpec.from_yaml("ur5e")
    agent = Pi0Agent(HoldPolicy(robot, 4), mapping=EnvironmentMapping(ur5(), robot, space, wide))
    observations = [{**space.sample(), "prompt": "go"} for _ in range(6)]
    with Recorder(agent, tmp_path) as recorder:
        actions = [recorder.get_action(observation) for observation in observations]
    np.testing.assert_allclose(actions[0][:6], observations[0]["joints"])
    assert actions[0].dtype == np.float64
    path = tmp_path / "episode_000000.npz"
    assert all(same(*pair) for pair in zip(replay(path, agent), actions, strict=True))
    assert same(next(Recording.load(path).steps())[0], observations[0])
    with pytest.raises(ConfigError, match="mapping is for robot 'ur5e' and the policy drives 'arm6'"):
        Pi0Agent(HoldPolicy(ARM6), mapping=agent.mapping)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    with Recorder(Pi0Agent(HoldPolicy(ARM6)), tmp_path) as recorder:
        recorder.get_action(observe(np.random.default_rng(0)))
    good = (tmp_path / "episode_000000.npz").read_bytes()
    np.savez(tmp_path / "other.npz", state=np.zeros(3))
    for name, content in {"cut.npz": good[: len(good) // 2], "empty.npz": b"", "text.npz": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("cut.npz", "empty.npz", "text.npz", "other.npz"):
        with pytest.raises(DatasetError, match="is not a recording, or is damaged"):
            Recording.load(tmp_path / name)
    with pytest.raises(DatasetError, match="No recording"):
        Recording.load(tmp_path / "none.npz")
