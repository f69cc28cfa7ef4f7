"""Reading: one or several LeRobotDataset v3.0 folders as arrays over all their frames."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import DatasetError
from pi0_control.train import layout

_FRAME_COLUMNS = (
    layout.STATE,
    layout.ACTION,
    layout.OBJECTS,
    layout.TARGET,
    "frame_index",
    "episode_index",
    "task_index",
)


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode lies in a video file: from ``from_s`` [s] on."""

    path: Path
    from_s: float


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    Attributes:
        root: the dataset it comes from, where it is number ``index``.
        start: index of its first frame among all frames that were opened together.
        length: number of frames.
        videos: by camera.
        metadata: what was given to ``DatasetWriter.save_episode``.
    """

    root: Path
    index: int
    start: int
    length: int
    videos: Mapping[str, VideoSpan]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Dataset:
    """N frames of demonstrations; images stay in their video files (see ``cache.decode_images``).

    Attributes:
        roots: the folders it was read from.
        fps: frames per second.
        cameras: names of the cameras, in the order of the features.
        object_names: names of the objects with known positions; empty when the dataset holds none.
        features: the ``features`` of the first root's info.json.
        episodes: in the order of frames.
        states: float32 [N, D].
        actions: float32 [N, D], absolute joint targets.
        objects: float32 [N, n, 3], positions in the robot's base frame [m].
        targets: int64 [N, 2], indices of the objects the instruction names: what is to be moved, and where it goes;
            -1 none or not known.
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
    tasks: tuple[str, ...]
    task_index: NDArray[np.int64]
    episode_index: NDArray[np.int64]

    @staticmethod
    def open(roots: str | Path | Sequence[str | Path]) -> "Dataset":
        """Read one folder, or several with the same features as one dataset.

        Raises:
            DatasetError: a file is missing or broken, the roots do not fit each other, or there is no episode.
        """
        paths = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
        if not paths:
            raise DatasetError("No dataset was given; expected at least one folder.")
        return _join([_RootReader(path).read() for path in paths])

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
        for name in ("fps", "cameras", "object_names"):
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
    )


def _numbers(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """Position of every frame's episode, int64 [N]."""
    return np.repeat(np.arange(len(episodes)), [episode.length for episode in episodes])


class _RootReader:
    """Reads one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = layout.read_info(path)
        self.features = self.info["features"]
        self.cameras = tuple(
            name.removeprefix(layout.IMAGES) for name in self.features if name.startswith(layout.IMAGES)
        )
        self._check_features()

    def _check_features(self) -> None:
        for name in (layout.STATE, layout.ACTION):
            if name not in self.features:
                raise DatasetError(f"{self.path} has no feature {name!r}; it has {sorted(self.features)}.")
        for camera in self.cameras:
            dtype = self.features[layout.IMAGES + camera].get("dtype")
            if dtype != "video":
                raise DatasetError(f"Camera {camera!r} of {self.path} is stored as {dtype!r}; expected 'video'.")

    def read(self) -> Dataset:
        """All frames of the folder; it may hold none."""
        rows = self._episode_rows()
        frames = self._frames(rows)
        n = frames.num_rows
        object_names = layout.object_names_of(self.features)
        objects = self._matrix(frames, layout.OBJECTS) if object_names else np.zeros((n, 0), np.float32)
        targets = np.full((n, layout.NUM_TARGETS), -1, np.int64)
        if layout.TARGET in frames.column_names:
            named = self._matrix(frames, layout.TARGET)
            targets[:, : named.shape[1]] = named
        tasks, task_index = self._tasks(frames["task_index"].to_numpy())
        episodes = self._episodes(rows)
        return Dataset(
            roots=(self.path,),
            fps=self.info["fps"],
            cameras=self.cameras,
            object_names=object_names,
            features=self.features,
            episodes=tuple(episodes),
            states=self._matrix(frames, layout.STATE),
            actions=self._matrix(frames, layout.ACTION),
            objects=objects.reshape(n, len(object_names), 3),
            targets=targets,
            tasks=tasks,
            task_index=task_index,
            episode_index=_numbers(episodes),
        )

    def _tasks(self, numbers: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Instructions that occur, and for every frame the position of its own, from its task number."""
        present, positions = np.unique(numbers, return_inverse=True)
        known = layout.read_tasks(self.path) if len(present) else {}
        unknown = set(present.tolist()) - set(known)
        if unknown:
            raise DatasetError(f"{self.path} has frames of task {min(unknown)}; its tasks are {sorted(known)}.")
        return tuple(known[number] for number in present.tolist()), positions

    def _episode_rows(self) -> list[dict[str, Any]]:
        """Metadata of the episodes that info.json counts, in order."""
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index", "metadata"]
        for camera in self.cameras:
            key = f"videos/{layout.IMAGES}{camera}"
            columns += [f"{key}/chunk_index", f"{key}/file_index", f"{key}/from_timestamp"]
        rows: list[dict[str, Any]] = []
        for file in sorted((self.path / "meta" / "episodes").glob("*/*.parquet")):
            table = layout.read_table(file, columns)
            missing = set(columns) - {"metadata"} - set(table.column_names)
            if missing:
                raise DatasetError(f"{file} lacks the columns {sorted(missing)}.")
            rows += table.to_pylist()
        total = self.info["total_episodes"]
        rows = sorted((row for row in rows if row["episode_index"] < total), key=lambda row: row["episode_index"])
        if len(rows) != total:
            raise DatasetError(f"{self.path} describes {len(rows)} episodes; its info.json counts {total}.")
        return rows

    def _frames(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Frames of all episodes, one episode behind the other."""
        files = sorted({(row["data/chunk_index"], row["data/file_index"]) for row in rows})
        paths = [self.info["data_path"].format(chunk_index=chunk, file_index=file) for chunk, file in files]
        tables = [layout.read_table(self.path / path, _FRAME_COLUMNS) for path in paths]
        if not tables:
            empty = {name: pa.array([], pa.int64()) for name in ("frame_index", "episode_index", "task_index")}
            return pa.table(empty)
        try:
            joined = pa.concat_tables(tables)
        except pa.ArrowInvalid as error:
            raise DatasetError(f"The data files of {self.path} have different columns: {error}.") from error
        frames = joined.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
        lengths = [row["length"] for row in rows]
        expected = np.repeat([row["episode_index"] for row in rows], lengths)
        steps = np.concatenate([np.arange(length) for length in lengths])
        got = frames["episode_index"].to_numpy(), frames["frame_index"].to_numpy()
        if not (np.array_equal(got[0], expected) and np.array_equal(got[1], steps)):
            raise DatasetError(
                f"{self.path} holds {len(got[0])} frames that are not those of its {len(rows)} episodes; expected "
                f"{len(steps)} frames numbered from 0 in each."
            )
        return frames

    def _matrix(self, frames: pa.Table, name: str) -> NDArray[np.float32]:
        """A column of vectors as float32 [N, d]."""
        width = int(np.prod(self.features[name]["shape"]))
        if not frames.num_rows:
            return np.zeros((0, width), np.float32)
        if name not in frames.column_names:
            raise DatasetError(f"The data of {self.path} has no column {name!r}; it has {frames.column_names}.")
        column = frames[name].combine_chunks()
        flat = column if not pa.types.is_nested(column.type) else column.flatten()
        values = flat.to_numpy(zero_copy_only=False).astype(np.float32)
        if len(values) != frames.num_rows * width:
            raise DatasetError(f"Column {name!r} of {self.path} does not hold vectors of {width} numbers throughout.")
        if not np.isfinite(values).all():
            raise DatasetError(f"Column {name!r} of {self.path} holds numbers that are not finite.")
        return values.reshape(-1, width)

    def _episodes(self, rows: Sequence[Mapping[str, Any]]) -> list[Episode]:
        episodes, start = [], 0
        for row in rows:
            videos = {camera: self._span(row, layout.IMAGES + camera) for camera in self.cameras}
            metadata = json.loads(row.get("metadata") or "{}")
            episodes.append(Episode(self.path, row["episode_index"], start, row["length"], videos, metadata))
            start += row["length"]
        return episodes

    def _span(self, row: Mapping[str, Any], key: str) -> VideoSpan:
        chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
        path = self.info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        return VideoSpan(self.path / path, row[f"videos/{key}/from_timestamp"])
