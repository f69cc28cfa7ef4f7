"""Reading: one or several LeRobotDataset folders (v2.0 to v3.0) as arrays over all their frames."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import DatasetError
from pi0_control.train import layout, v21, v30
from pi0_control.train.episode import Episode

_FRAME_COLUMNS = (layout.OBJECTS, layout.TARGET, "timestamp", "frame_index", "episode_index", "task_index")


@dataclass(frozen=True, eq=False)
class Dataset:
    """N frames of demonstrations; images stay in their files (see ``cache.decode_images``).

    Attributes:
        roots: the folders it was read from.
        fps: frames per second.
        cameras: names of the cameras, in the order of the features.
        object_names: names of the objects with known positions; empty when the dataset holds none.
        features: the ``features`` of the first root's info.json, states and actions under LeRobot's names.
        episodes: in the order of frames.
        states: float32 [N, D].
        actions: float32 [N, D], absolute joint targets.
        objects: float32 [N, n, 3], positions in the robot's base frame [m].
        targets: int64 [N, 2], indices of the objects the instruction names: what is to be moved, and where it goes;
            -1 none or not known.
        timestamps: float64 [N], time since the episode's first frame as recorded [s].
        tasks: every distinct instruction.
        task_index: int64 [N], the instruction of every frame.
        episode_index: int64 [N], position in ``episodes``.
    """

    roots: tuple[Path, ...]
    fps: int
    cameras: tuple[str, ...]
    object_names: tuple[str, ...]
    features: Mapping[str, Any]
    episodes: tuple[Episode, ...]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    objects: NDArray[np.float32]
    targets: NDArray[np.int64]
    timestamps: NDArray[np.float64]
    tasks: tuple[str, ...]
    task_index: NDArray[np.int64]
    episode_index: NDArray[np.int64]

    @staticmethod
    def open(roots: str | Path | Sequence[str | Path], require_finite: bool = True) -> "Dataset":
        """Read one folder, or several with the same features as one dataset.

        Args:
            roots: folders of LeRobotDataset v2.0, v2.1 or v3.0.
            require_finite: refuse states and actions that are not finite numbers.

        Raises:
            DatasetError: a file is missing or broken, the roots do not fit each other, or there is no episode.
        """
        paths = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
        if not paths:
            raise DatasetError("No dataset was given; expected at least one folder.")
        for position, path in enumerate(paths):
            if path.resolve() in [other.resolve() for other in paths[:position]]:
                raise DatasetError(f"{path} was given twice; expected every dataset once.")
        return _join([_RootReader(path, require_finite).read() for path in paths])

    def __len__(self) -> int:
        """Number of frames N."""
        return len(self.states)

    def prompt(self, index: int) -> str:
        """Instruction of one frame."""
        return self.tasks[self.task_index[index]]

    @functools.cached_property
    def _last_frames(self) -> NDArray[np.int64]:
        """Last frame of every episode."""
        return np.array([episode.start + episode.length - 1 for episode in self.episodes])

    def action_chunks(self, indices: ArrayLike, horizon: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Actions of the frames ``indices`` [B] and of those that follow, inside the same episode.

        Returns:
            actions [B, horizon, D]; behind the end of the episode the last action repeats and is_pad [B, horizon]
            is True.
        """
        frames = np.asarray(indices, np.int64)[:, None] + np.arange(horizon)
        last = self._last_frames[self.episode_index[frames[:, 0]]][:, None]
        return self.actions[np.minimum(frames, last)], frames > last


def _join(parts: Sequence[Dataset]) -> Dataset:
    """All parts one behind the other; DatasetError when they do not fit each other or hold no episode."""
    first = parts[0]
    for part in parts[1:]:
        different = set(part.cameras) ^ set(first.cameras)
        if different:
            raise DatasetError(
                f"{part.roots[0]} has cameras {list(part.cameras)}, but {first.roots[0]} has {list(first.cameras)}; "
                f"expected the same, and {sorted(different)} are in one of them only."
            )
        for name in ("fps", "object_names"):
            got, expected = getattr(part, name), getattr(first, name)
            if got != expected:
                raise DatasetError(f"{part.roots[0]} has {name} {got}, but {first.roots[0]} has {expected}.")
        widths = [(d.states.shape[1], d.actions.shape[1]) for d in (part, first)]
        if widths[0] != widths[1]:
            raise DatasetError(f"{part.roots[0]} has states and actions of {widths[0]} numbers, others {widths[1]}.")
        for feature in (layout.STATE, layout.ACTION):
            names, others = (layout.joint_names_of(d.features, feature) for d in (part, first))
            if names and others and names != others:
                raise DatasetError(f"{part.roots[0]} has {feature} of {list(names)}, others {list(others)}.")
    roots = tuple(root for part in parts for root in part.roots)
    episodes: list[Episode] = []
    for part in parts:
        offset = sum(episode.length for episode in episodes)
        episodes += [replace(episode, start=episode.start + offset) for episode in part.episodes]
    if not episodes:
        raise DatasetError(f"No episode in {', '.join(map(str, roots))}; expected at least one.")
    tasks = tuple(dict.fromkeys(task for part in parts for task in part.tasks))
    renumber = [np.array([tasks.index(task) for task in part.tasks], np.int64)[part.task_index] for part in parts]
    return replace(
        first,
        roots=roots,
        episodes=tuple(episodes),
        tasks=tasks,
        task_index=np.concatenate(renumber),
        episode_index=_numbers(episodes),
        states=np.concatenate([part.states for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        objects=np.concatenate([part.objects for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        timestamps=np.concatenate([part.timestamps for part in parts]),
    )


def _numbers(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """Position of every frame's episode, int64 [N]."""
    return np.repeat(np.arange(len(episodes)), [episode.length for episode in episodes])


class _RootReader:
    """Reads one folder."""

    def __init__(self, path: Path, require_finite: bool) -> None:
        self.path = path
        self.require_finite = require_finite
        self.info = layout.read_info(path)
        self.version = v30 if self.info["codebase_version"] == layout.VERSION else v21
        features = self.info["features"]
        try:
            self.columns = {name: layout.column_of(features, name) for name in (layout.STATE, layout.ACTION)}
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error
        self.features = {**features, **{name: features[column] for name, column in self.columns.items()}}

    def read(self) -> Dataset:
        """All frames of the folder; it may hold none."""
        episodes = self.version.read_episodes(self.path, self.info)
        frames = self._frames(episodes)
        object_names = layout.object_names_of(self.features)
        objects = self._matrix(frames, layout.OBJECTS) if object_names else np.zeros(0, np.float32)
        tasks, task_index = self._tasks(frames["task_index"].to_numpy())
        return Dataset(
            roots=(self.path,),
            fps=self.info["fps"],
            cameras=tuple(layout.cameras_of(self.features)),
            object_names=object_names,
            features=self.features,
            episodes=tuple(episodes),
            states=self._matrix(frames, layout.STATE),
            actions=self._matrix(frames, layout.ACTION),
            objects=objects.reshape(frames.num_rows, len(object_names), 3),
            targets=self._targets(frames),
            timestamps=self._timestamps(frames),
            tasks=tasks,
            task_index=task_index,
            episode_index=_numbers(episodes),
        )

    def _tasks(self, numbers: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Instructions that occur, and for every frame the position of its own, from its task number."""
        present, positions = np.unique(numbers, return_inverse=True)
        known = self.version.read_tasks(self.path) if len(present) else {}
        unknown = set(present.tolist()) - set(known)
        if unknown:
            raise DatasetError(f"{self.path} has frames of task {min(unknown)}; its tasks are {sorted(known)}.")
        return tuple(known[number] for number in present.tolist()), positions

    def _frames(self, episodes: Sequence[Episode]) -> pa.Table:
        """Frames of all episodes, one episode behind the other."""
        columns = [*self.columns.values(), *_FRAME_COLUMNS]
        tables = [layout.read_table(path, columns) for path in dict.fromkeys(e.data for e in episodes)]
        if not tables:
            empty = {name: pa.array([], pa.int64()) for name in ("frame_index", "episode_index", "task_index")}
            return pa.table(empty)
        columns_of_files = {frozenset(table.column_names) for table in tables}
        if len(columns_of_files) > 1:
            some = sorted(frozenset.union(*columns_of_files) - frozenset.intersection(*columns_of_files))
            raise DatasetError(f"The data files of {self.path} have different columns: {some} are not in all of them.")
        try:
            joined = pa.concat_tables(tables, promote_options="permissive")  # other tools write other types of lists
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DatasetError(f"The data files of {self.path} have different columns: {error}.") from error
        needed = {"frame_index", "episode_index", "task_index", *self.columns.values()}
        missing = needed - set(joined.column_names)
        if missing:
            raise DatasetError(f"The data of {self.path} lacks {sorted(missing)}; it has {joined.column_names}.")
        frames = joined.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
        lengths = [episode.length for episode in episodes]
        expected = np.repeat([episode.index for episode in episodes], lengths)
        steps = np.concatenate([np.arange(length) for length in lengths])
        got = frames["episode_index"].to_numpy(), frames["frame_index"].to_numpy()
        if not (np.array_equal(got[0], expected) and np.array_equal(got[1], steps)):
            raise DatasetError(
                f"{self.path} holds {len(got[0])} frames that are not those of its {len(episodes)} episodes; expected "
                f"{len(steps)} frames numbered from 0 in each."
            )
        return frames

    def _targets(self, frames: pa.Table) -> NDArray[np.int64]:
        targets = np.full((frames.num_rows, layout.NUM_TARGETS), -1, np.int64)
        if layout.TARGET in frames.column_names:
            named = self._matrix(frames, layout.TARGET)
            targets[:, : named.shape[1]] = named
        return targets

    def _timestamps(self, frames: pa.Table) -> NDArray[np.float64]:
        if "timestamp" in frames.column_names:
            return frames["timestamp"].to_numpy().astype(np.float64)
        return frames["frame_index"].to_numpy() / self.info["fps"]

    def _matrix(self, frames: pa.Table, name: str) -> NDArray[np.float32]:
        """A column of vectors as float32 [N, d]."""
        width = layout.width_of(self.features[name])
        if not frames.num_rows:
            return np.zeros((0, width), np.float32)
        flat = frames[self.columns.get(name, name)].combine_chunks()
        while pa.types.is_nested(flat.type):
            flat = flat.flatten()
        values = flat.to_numpy(zero_copy_only=False).astype(np.float32)
        if len(values) != frames.num_rows * width:
            raise DatasetError(f"Column {name!r} of {self.path} does not hold vectors of {width} numbers throughout.")
        if self.require_finite and not np.isfinite(values).all():
            raise DatasetError(f"Column {name!r} of {self.path} holds numbers that are not finite.")
        return values.reshape(-1, width)
