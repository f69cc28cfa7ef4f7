"""Planted faults are found, each by its name and nothing else with it; a sound recording has none."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from policy_parts import ARM6, TINY

from pi0_control.doctor import Recording, examine
from pi0_control.doctor.actions import predicted
from pi0_control.errors import CheckpointError
from pi0_control.policy import NormStats, PolicyConfig, VectorStats
from pi0_control.policy.camera_stats import CameraStats
from pi0_control.train.dataset import Dataset
from pi0_control.train.episode import Episode
from pi0_control.train.training import compute_norm_stats

EPISODES, LENGTH = 12, 60
MIDDLE = np.array([-0.3, 0.7, 1.7, 0.0, -0.6, 0.2])
REACH = np.array([0.3, 0.15, 0.25, 0.02, 0.1, 0.5])
ANGLES, SHAPE = slice(0, 6), (48, 64, 3)
ABSOLUTE = {"action_space": "joint_absolute", "delta_mask": (False,) * 7}


def record(seed: int) -> Recording:
    """Swings around the middle, in which the gripper is mostly open; targets are where the arm is two steps later."""
    rng = np.random.default_rng(seed)
    states, actions = [], []
    for _ in range(EPISODES):
        times = np.arange(LENGTH + 2)[:, None]
        angles = MIDDLE + REACH * np.sin(times * rng.uniform(0.1, 0.2, 6) + rng.uniform(0, 7, 6))
        closing = 1 / (1 + np.exp((times - 0.7 * LENGTH) / 3))
        states.append(np.hstack([angles, closing])[:LENGTH])
        actions.append(np.hstack([angles[2:], closing[2:] > 0.5]))
    images = {
        name: [rng.integers((60, 40, 0), (255, 200, 120), SHAPE).astype(np.uint8) for _ in range(5)]
        for name in ARM6.cameras
    }
    numbers = (np.concatenate(values).astype(np.float32) for values in (states, actions))
    names = ARM6.joint_names
    return Recording("test", *numbers, np.arange(EPISODES).repeat(LENGTH), 20.0, names, names, images)


def as_dataset(recording: Recording) -> Dataset:
    nothing = dict.fromkeys(("roots", "cameras", "object_names", "features", "tasks"), ())
    lengths = [Episode(None, i, i * LENGTH, LENGTH, None, {}, {}) for i in range(EPISODES)]
    arrays = dict.fromkeys(("objects", "targets", "timestamps", "task_index"), np.zeros(0))
    return Dataset(fps=20, episodes=tuple(lengths), states=recording.states, actions=recording.actions,
                   episode_index=recording.episode, **nothing, **arrays)  # fmt: skip


def stats_of(values: np.ndarray) -> VectorStats:
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    return VectorStats(values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64), low, high)


@dataclass(frozen=True, eq=False)
class Case:
    config: PolicyConfig
    stats: NormStats
    recording: Recording

    def names(self) -> set[str]:
        return {finding.name for finding in examine(self.config, self.stats, self.recording).findings}

    def configured(self, **changes) -> "Case":
        return replace(self, config=replace(self.config, **changes))

    def recorded(self, **changes) -> "Case":
        return replace(self, recording=replace(self.recording, **changes))

    def numbers(self, change: Callable[[np.ndarray], np.ndarray]) -> "Case":
        """States and actions changed alike."""
        states, actions = (change(values.copy()) for values in (self.recording.states, self.recording.actions))
        return self.recorded(states=states, actions=actions)

    def without_names(self) -> "Case":
        return self.recorded(state_names=(), action_names=())

    def joint(self, index: int | slice, factor: float = 1.0, offset: float = 0.0) -> "Case":
        def change(values: np.ndarray) -> np.ndarray:
            values[:, index] = values[:, index] * factor + offset
            return values

        return self.numbers(change)

    def action(self, index: int | slice, factor: float = 1.0, offset: float = 0.0) -> "Case":
        """Actions changed, and the states as they were."""
        return self.joint(index, factor, offset).recorded(states=self.recording.states)

    def pictures(self, change: Callable[[np.ndarray], np.ndarray]) -> "Case":
        images = self.recording.images.items()
        return self.recorded(images={name: [change(image) for image in some] for name, some in images})


def case(seed: int = 1, **settings) -> Case:
    """A policy that knows recording 0, and another recording."""
    known = record(0)
    seen = {name: CameraStats.of(some) for name, some in known.images.items()}
    config = PolicyConfig.for_robot(ARM6, TINY, **{"camera_stats": seen, **settings})
    return Case(config, NormStats(stats_of(known.states), stats_of(predicted(known, config))), record(seed))


@pytest.fixture(scope="module")
def sound() -> Case:
    return case()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [{}, {"norm": "quantile"}, ABSOLUTE], ids=["delta", "quantile", "absolute"])
def test_a_sound_recording_has_no_findings(seed, settings) -> None:
    assert case(seed, **settings).names() == set()


def of_another_horizon(sound: Case) -> Case:
    """A policy whose statistics are of chunks three times as long."""
    long = replace(sound.config, model=replace(TINY, action_horizon=18))
    return replace(sound, stats=replace(sound.stats, actions=stats_of(predicted(sound.recording, long))))


def with_std(sound: Case, std: float) -> Case:
    state = sound.stats.state
    return replace(
        sound, stats=replace(sound.stats, state=replace(state, std=np.where(np.arange(7) == 3, std, state.std)))
    )


def with_gripper_inverted(sound: Case) -> Case:
    states = sound.recording.states
    return sound.recorded(states=np.hstack([states[:, :6], 1 - states[:, 6:]]))


def without_gripper(sound: Case) -> Case:
    return sound.recorded(states=sound.recording.states[:, :6], state_names=())


def with_nan(values: np.ndarray) -> np.ndarray:
    values[[3, 7], 2] = np.nan
    return values


FAULTS: dict[str, tuple[Callable[[Case], Case], str, str]] = {
    "degrees": (lambda c: c.joint(ANGLES, 180 / np.pi), "degrees and radians", "multiply the angles by 0.0174533"),
    "gripper first": (
        lambda c: c.without_names().numbers(lambda v: np.roll(v, 1, 1)),
        "joint order",
        "in the places of waist, shoulder, elbow, forearm, wrist, tool, gripper: what looks like gripper, waist, ",
    ),
    "two exchanged": (
        lambda c: c.without_names().numbers(lambda v: v[:, [0, 2, 1, 3, 4, 5, 6]]),
        "joint order",
        "in the places of shoulder, elbow: what looks like elbow, shoulder",
    ),
    "other order of names": (
        lambda c: c.recorded(states=c.recording.states[:, ::-1], state_names=ARM6.joint_names[::-1]),
        "joint order",
        "gripper, tool, wrist, forearm, elbow, shoulder, waist",
    ),
    "sign": (lambda c: c.joint(2, -1), "sign", "state elbow about -1.7 about 1.7"),
    "gripper inverted": (with_gripper_inverted, "gripper inverted", "minus the value"),
    "gripper in percent": (lambda c: c.joint(6, 100), "gripper range", "perhaps times 0.01"),
    "gripper in metres": (lambda c: c.joint(6, 0.085), "gripper range", "perhaps times 11.8"),
    "zero elsewhere": (lambda c: c.joint(2, 1, 0.8), "out of range", "100% outside"),
    "joint stands still": (lambda c: c.joint(4, 0, -0.6), "constant", "-0.6 throughout"),
    "half the rate": (lambda c: c.recorded(rate_hz=10.0), "rate", "10 Hz 20 Hz"),
    "actions in degrees": (lambda c: c.action(ANGLES, 180 / np.pi), "actions in other units", "59 times as much as"),
    "gripper of actions": (lambda c: c.action(6, -1, 1), "actions of the other sign", "actions gripper they change -"),
    "sign of actions": (lambda c: c.action(2, -1), "actions of the other sign", "actions elbow they change -1 times"),
    "sign of a state": (
        lambda c: c.recorded(states=c.recording.states * np.array([-1] + [1] * 6)),
        "sign",
        "turn the sign of this joint in the states, which is not that of the actions",
    ),
    "distances": (
        lambda c: c.recorded(actions=c.recording.actions - c.recording.states),
        "actions are distances",
        "record absolute targets: add a distance or step to the state",
    ),
    "longer chunks": (of_another_horizon, "horizon", "the policy's are of 6"),
    "absolute statistics": (
        lambda c: replace(c, stats=replace(c.stats, actions=stats_of(c.recording.actions))),
        "relative or absolute",
        "the statistics fit absolute targets distances to the state",
    ),
    "relative statistics": (
        lambda c: c.configured(**ABSOLUTE),
        "relative or absolute",
        "the statistics fit distances to the state absolute targets",
    ),
    "tiny spread": (lambda c: with_std(c, 1e-6), "tiny span", "state forearm 2 std 2e-06 more than 0.002"),
    "not a number": (lambda c: c.numbers(with_nan), "not finite", "2 of 720 moments"),
    "a joint less": (without_gripper, "width", "6 numbers 7: waist"),
    "channels": (lambda c: c.pictures(lambda image: image[..., ::-1]), "swapped channels", "+0.3"),
    "cropped": (lambda c: c.pictures(lambda image: image[:, 8:-8]), "image aspect", "48x48 64x48"),
    "on its side": (lambda c: c.pictures(np.rot90), "image aspect", "turn the image by 90°"),
    "small": (lambda c: c.pictures(lambda image: image[::8, ::8]), "image size", "8x6 64x48"),
    "dark": (lambda c: c.pictures(lambda image: image // 60), "blank camera", "dark"),
    "other names": (
        lambda c: c.recorded(images={"top": c.recording.images["base_0_rgb"]}),
        "camera missing",
        "there are ['top'] needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_and_nothing_else(sound: Case, fault: str) -> None:
    plant, name, words = FAULTS[fault]
    found = plant(sound)
    findings = examine(found.config, found.stats, found.recording).findings
    texts = [" ".join((f.where, f.seen, f.expected, f.change)) for f in findings]
    assert {finding.name for finding in findings} == {name}, texts
    assert any(words in text for text in texts), texts


def test_the_other_side_of_the_workspace_may_be_no_wrong_sign(sound: Case) -> None:
    """Its rest position of zero tells nothing, so that a waist may as well work on the other side."""
    other = sound.joint(0, -1)
    findings = examine(other.config, other.stats, other.recording).findings
    assert {(each.severity, each.name) for each in findings if each.name == "sign"} == {("warning", "sign")}
    (error,) = examine(sound.config, sound.stats, sound.joint(2, -1).recording).findings
    assert (error.severity, error.name, error.where) == ("error", "sign", "state elbow")


def test_numbers_do_not_overrule_names(sound: Case) -> None:
    """They may look exchanged because the robot does something else; whatever is out of range still is."""
    exchanged = sound.numbers(lambda values: values[:, [0, 2, 1, 3, 4, 5, 6]])
    findings = examine(exchanged.config, exchanged.stats, exchanged.recording).findings
    assert {(each.severity, each.name, each.where) for each in findings} == {
        ("warning", "joint order", "state"),
        ("error", "out of range", "state shoulder"),
        ("error", "out of range", "state elbow"),
    }
    assert all("the names are in that order" in each.change for each in findings if each.name == "joint order")
    swapped = list(ARM6.joint_names)
    swapped[1], swapped[2] = swapped[2], swapped[1]
    named = exchanged.recorded(state_names=tuple(swapped), action_names=tuple(swapped))
    assert named.names() == {"joint order"}


def test_no_policy_is_blamed_for_actions_that_are_distances(sound: Case) -> None:
    for found in (sound, sound.configured(**ABSOLUTE)):
        states, actions = found.recording.states, found.recording.actions
        found = found.recorded(actions=np.hstack([(actions - states)[:, :6], actions[:, 6:]]))
        (finding,) = examine(found.config, found.stats, found.recording).findings
        assert finding.name == "actions are distances"
        assert "action_space" not in finding.change


def test_a_policy_alone_is_judged_by_its_own_files(sound: Case) -> None:
    assert examine(sound.config, sound.stats).findings == ()
    (finding,) = examine(sound.config, with_std(sound, 0.0).stats).findings
    assert (finding.severity, finding.name, finding.where) == ("warning", "tiny span", "state forearm")


@pytest.mark.parametrize("norm", ["z_score", "quantile"])
def test_a_joint_that_stood_still_in_training_has_a_tiny_span(sound: Case, norm: str) -> None:
    """Training gives it a spread, in which the noise of the robot is still large; that it stands still is no news."""
    still = sound.joint(3, 0).configured(norm=norm)
    stats = compute_norm_stats(as_dataset(still.recording), still.config, np.arange(EPISODES * LENGTH))
    assert {(f.name, f.where) for f in examine(still.config, stats).findings} == {
        ("tiny span", "state forearm"),
        ("tiny span", "actions forearm"),
    }
    assert replace(still, stats=stats).names() == {"tiny span"}


def test_statistics_in_degrees_fit_neither_robot_nor_recording(sound: Case) -> None:
    factor = np.array([180 / np.pi] * 6 + [1])
    in_degrees = replace(sound.stats, state=VectorStats(*(value * factor for value in vars_of(sound.stats.state))))
    names = {finding.name for finding in examine(sound.config, in_degrees).findings}
    assert names == {"statistics beyond limits"}
    found = replace(sound, stats=in_degrees)
    assert found.names() >= {"statistics beyond limits", "degrees and radians"}


def vars_of(stats: VectorStats) -> tuple[np.ndarray, ...]:
    return stats.mean, stats.std, stats.q01, stats.q99


def test_a_gripper_that_closes_at_once_is_not_inverted(sound: Case) -> None:
    states = sound.recording.states.copy()
    states[np.arange(len(states)) % LENGTH > 4, 6] = 0.02
    assert sound.recorded(states=states).names() <= {"out of range"}


def test_without_camera_stats_bluish_images_are_a_warning(sound: Case) -> None:
    unknown = sound.configured(camera_stats={})
    assert unknown.names() == set()
    swapped = unknown.pictures(lambda image: image[..., ::-1])
    findings = examine(swapped.config, swapped.stats, swapped.recording).findings
    assert {(each.severity, each.name) for each in findings} == {("warning", "swapped channels")}
    assert len(findings) == len(ARM6.cameras)


@pytest.mark.parametrize(("cast", "severity"), [(0.06, "warning"), (0.2, "error")])
def test_a_slight_cast_may_be_turned_round_by_another_light(sound: Case, cast: float, severity: str) -> None:
    known = {name: CameraStats(48, 64, (0.5 + cast / 2, 0.5, 0.5 - cast / 2)) for name in ARM6.cameras}
    shown = (90 + 255 * np.array([-cast / 2, 0, cast / 2])).round().astype(np.uint8)
    found = sound.configured(camera_stats=known).pictures(lambda image: shown + image[..., :1] // 4)
    findings = examine(found.config, found.stats, found.recording).findings
    assert {(each.severity, each.name) for each in findings} == {(severity, "swapped channels")}
    assert all(("light" in each.change) == (severity == "warning") for each in findings)


def test_statistics_of_fewer_joints_are_refused(sound: Case) -> None:
    short = VectorStats(np.zeros(3), np.ones(3))
    with pytest.raises(CheckpointError, match="The statistics of actions have 3 entries; expected one for each of"):
        examine(sound.config, replace(sound.stats, actions=short))


def test_joints_without_actions_are_left_out(sound: Case) -> None:
    config = replace(sound.config, uncommanded=("tool",), delta_mask=(True,) * 5 + (False,) * 2)
    kept = [0, 1, 2, 3, 4, 6]
    narrow = replace(sound.recording, actions=sound.recording.actions[:, kept], action_names=())
    stats = VectorStats(*(value[kept] for value in vars_of(sound.stats.actions)))
    examination = examine(config, replace(sound.stats, actions=stats), narrow)
    assert examination.findings == ()
    assert [joint.name for joint in examination.actions.joints] == [ARM6.joint_names[index] for index in kept]


def test_steps_relative_to_the_state_are_not_taken_for_targets(sound: Case) -> None:
    def steps(recording: Recording) -> Recording:
        return replace(recording, actions=np.gradient(recording.states, axis=0))

    config = replace(sound.config, rates=ARM6.joint_names[:6])  # and relative, as openpi trained pi0_libero
    stats = replace(sound.stats, actions=stats_of(predicted(steps(record(0)), config)))
    assert examine(config, stats, steps(sound.recording)).findings == ()


def test_chunks_are_those_of_a_dataset(sound: Case) -> None:
    recording, frames = sound.recording, np.array([0, 57, 59, 60, 719])
    chunks, is_there = recording.action_chunks(frames, 5)
    expected, is_pad = as_dataset(recording).action_chunks(frames, 5)
    assert np.array_equal(is_there, ~is_pad)
    assert np.array_equal(chunks[is_there], expected[is_there])
