"""What looks wrong in a dataset, found before it is trained on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pi0_control.doctor.actions import target_joints
from pi0_control.doctor.cameras import blank
from pi0_control.doctor.findings import Finding
from pi0_control.doctor.numbers import FAR_OUTSIDE, TINY_SPAN, Numbers, beyond_limits
from pi0_control.doctor.targets import Slopes, unlike_states
from pi0_control.errors import DatasetError
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.norm_stats import VectorStats
from pi0_control.policy.transforms import for_all_joints
from pi0_control.train import layout
from pi0_control.train.dataset import Dataset
from pi0_control.train.episode import Episode
from pi0_control.train.pictures import Picture, read_moments
from pi0_control.train.video import count_frames

STEP_TOLERANCE_S = 1e-4  # LeRobot's
LARGE = 4 * np.pi  # more than two turns [rad], and than metres or openings are


@dataclass(frozen=True)
class Dimension:
    """One number of a state or action over all frames, where it is finite.

    Attributes:
        name: from the dataset, or its position.
        values: min, q01, mean, std, q99 and max by name.
        remarks: what is suspicious about it.
    """

    name: str
    values: Mapping[str, float]
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Glimpse:
    """A few moments of one episode: ``images`` by camera, one per step; none of a camera that cannot be read."""

    episode: Episode
    prompt: str
    steps: tuple[int, ...]
    images: Mapping[str, Sequence[Picture]]


def dimensions_of(dataset: Dataset, feature: str) -> list[Dimension]:
    """Statistics and remarks for every number of ``observation.state`` or ``action``."""
    values = dataset.states if feature == layout.STATE else dataset.actions
    names = layout.joint_names_of(dataset.features, feature) or [str(index) for index in range(values.shape[1])]
    result = []
    for index, name in enumerate(names):
        column = values[:, index].astype(np.float64)
        finite = column[np.isfinite(column)]
        remarks = [] if len(finite) == len(column) else [f"{len(column) - len(finite)} frames are not finite"]
        remarks += _remarks(finite)
        if feature == layout.ACTION and np.array_equal(
            dataset.states[:, index : index + 1], values[:, index : index + 1]
        ):
            remarks.append("the same as the state")
        result.append(Dimension(name, _summary(finite), tuple(remarks)))
    return result


def _summary(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys(("min", "q01", "mean", "std", "q99", "max"), float("nan"))
    low, high = np.quantile(values, (0.01, 0.99))
    summary = {"min": values.min(), "q01": low, "mean": values.mean(), "std": values.std(), "q99": high}
    return {name: float(value) for name, value in {**summary, "max": values.max()}.items()}


def _remarks(values: NDArray[np.float64]) -> list[str]:
    """What is odd about finite numbers."""
    if not len(values):
        return []
    if values.min() == values.max():
        return ["constant"]
    low, high = np.quantile(values, (0.01, 0.99))
    span = high - low
    remarks = []
    if max(abs(low), abs(high)) > LARGE:
        remarks.append(
            f"{low:.3g} to {high:.3g}: no radians, metres or opening from 0 to 1, perhaps degrees or percent"
        )
    if span < TINY_SPAN:
        return [*remarks, f"tiny span: {span:.2g} between q01 and q99"]
    far = np.maximum(low - values, values - high) / span
    outside = far > FAR_OUTSIDE
    if outside.any():
        remarks.append(f"{outside.sum()} frames far out of range: up to {far.max():.1f} spans")
    return remarks


def step_times(dataset: Dataset) -> NDArray[np.float64]:
    """Time from every frame to the next one of its episode [s]."""
    return np.diff(dataset.timestamps)[np.diff(dataset.episode_index) == 0]


def find_problems(dataset: Dataset) -> list[str]:
    """One sentence for each thing that looks wrong in numbers, times, instructions or files."""
    problems = []
    for feature in (layout.STATE, layout.ACTION):
        if not layout.joint_names_of(dataset.features, feature):
            problems.append(f"{feature}: its numbers have no names.")
        for dimension in dimensions_of(dataset, feature):
            problems += [f"{feature} {dimension.name}: {remark}." for remark in dimension.remarks]
    if np.array_equal(dataset.states, dataset.actions):
        problems.append("action equals observation.state in every frame: there is nothing to imitate.")
    problems += [_sentence(finding) for finding in _unlike_states(dataset)]
    blank = [episode.index for episode in dataset.episodes if not dataset.prompt(episode.start).strip()]
    if blank:
        problems.append(f"{len(blank)} episodes have a blank instruction, the first is {blank[0]}.")
    if not dataset.cameras:
        problems.append(f"No camera; the features are {sorted(dataset.features)}.")
    return problems + _find_time_problems(dataset) + _find_file_problems(dataset)


def check_numbers(dataset: Dataset, config: PolicyConfig) -> None:
    """Refuse what a policy would learn wrongly: states beyond the limits of its robot, actions that are no targets.

    Args:
        dataset: whose states are those of the robot, and whose actions are those of all or of the commanded joints.
        config: of the policy.

    Raises:
        DatasetError: says which joints, what was seen and how to convert it.
    """
    joints = config.robot.joints
    found: list[Finding] = []
    if config.units == "robot":
        low, high = np.quantile(dataset.states, (0.01, 0.99), axis=0)
        stats = VectorStats(dataset.states.mean(0), dataset.states.std(0), low, high)
        found += beyond_limits(Numbers("state", joints, stats))
    targets, actions = target_joints(config), for_all_joints(dataset.actions, config)
    slopes = Slopes.of(dataset.states[:, targets], actions[:, targets], dataset.episode_index)
    found += unlike_states(slopes, [joints[index].name for index in targets])
    if found:
        raise DatasetError(f"{dataset.roots[0]}: {' '.join(map(_sentence, found))}")


def _unlike_states(dataset: Dataset) -> Iterator[Finding]:
    """Actions that are no absolute targets like the states, of joints that have both."""
    states, actions = (layout.joint_names_of(dataset.features, each) for each in (layout.STATE, layout.ACTION))
    if not states or not actions:
        states, actions = (tuple(map(str, range(each.shape[1]))) for each in (dataset.states, dataset.actions))
    names = [name for name in actions if name in states]
    slopes = Slopes.of(
        dataset.states[:, [states.index(name) for name in names]],
        dataset.actions[:, [actions.index(name) for name in names]],
        dataset.episode_index,
    )
    yield from unlike_states(slopes, names)


def _sentence(finding: Finding) -> str:
    return f"{finding.name}: {finding.where}: {finding.seen}; expected {finding.expected}; {finding.change}."


def _find_time_problems(dataset: Dataset) -> list[str]:
    problems = []
    late = [episode.index for episode in dataset.episodes if abs(dataset.timestamps[episode.start]) > STEP_TOLERANCE_S]
    if late:
        problems.append(f"{len(late)} episodes do not begin at time 0, the first is {late[0]}.")
    steps = step_times(dataset)
    rounding = float(np.spacing(np.float32(dataset.timestamps.max())))
    wrong = np.abs(steps - 1 / dataset.fps) > STEP_TOLERANCE_S + rounding
    if wrong.any():
        problems.append(
            f"{wrong.sum()} of {len(steps)} time steps are not the {1000 / dataset.fps:.1f} ms of {dataset.fps} fps: "
            f"{1000 * steps.min():.1f} to {1000 * steps.max():.1f} ms."
        )
    return problems


def _find_file_problems(dataset: Dataset) -> list[str]:
    """Videos that are missing, unreadable or shorter than their episodes."""
    needed: dict[Path, int] = {}
    for episode in dataset.episodes:
        for span in episode.images.values():
            if span.column is None:
                end = round(span.from_s * dataset.fps) + episode.length
                needed[span.path] = max(needed.get(span.path, 0), end)
    problems = []
    for path, frames in needed.items():
        try:
            count = count_frames(path)
        except DatasetError as error:
            problems.append(str(error))
        else:
            if count < frames:
                problems.append(f"Video {path} has {count} frames; its episodes need {frames}.")
    return problems


def glimpse(dataset: Dataset, episodes: int = 5, moments: int = 6) -> list[Glimpse]:
    """Look into some episodes, spread over all of them, at some moments, spread over each."""
    chosen = np.unique(np.linspace(0, len(dataset.episodes) - 1, min(episodes, len(dataset.episodes))).round())
    glimpses = []
    for episode in (dataset.episodes[int(index)] for index in chosen):
        steps = np.unique(np.linspace(0, episode.length - 1, moments).round().astype(int)).tolist()
        images = {camera: _moments(episode, camera, dataset.fps, steps) for camera in dataset.cameras}
        glimpses.append(Glimpse(episode, dataset.prompt(episode.start), tuple(steps), images))
    return glimpses


def _moments(episode: Episode, camera: str, fps: float, steps: Sequence[int]) -> Sequence[Picture]:
    try:
        return read_moments(episode, camera, fps, steps)
    except DatasetError:
        return ()


def find_camera_problems(glimpses: Sequence[Glimpse]) -> list[str]:
    """One sentence for each camera that is dark, shows nothing or never changes, in the moments looked at."""
    problems = []
    for camera in glimpses[0].images:
        unreadable = [look.episode.index for look in glimpses if not look.images[camera]]
        if unreadable:
            problems.append(f"Camera {camera}: no image of episode {unreadable[0]} can be read.")
        images = [image for look in glimpses for image in look.images[camera]]
        if images and (nothing := blank(images)):
            problems.append(f"Camera {camera}: {nothing}.")
    return problems
