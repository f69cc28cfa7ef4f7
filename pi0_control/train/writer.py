"""Recording: DatasetWriter writes episodes as a LeRobotDataset v3.0 that survives a crash at any moment.

Every episode has its own data file, videos and metadata row, each finished under a partial name, flushed and renamed.
meta/info.json comes last: an episode that it does not count does not exist, and its files are replaced by the next
episode.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pi0_control import files
from pi0_control.errors import DatasetError
from pi0_control.robot import RobotSpec
from pi0_control.train import layout, stats, v30
from pi0_control.train.video import VideoWriter

LOCK = "writer.lock"


@dataclass
class _Take:
    """The episode being recorded; a frame of which only a part was written spoils it."""

    videos: dict[str, VideoWriter]
    histograms: dict[str, NDArray[np.int64]]
    states: list[NDArray[np.float32]] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    objects: list[NDArray[np.float32]] = field(default_factory=list)
    is_whole: bool = True


class DatasetWriter:
    """Writes demonstrations of one robot; opening an existing root goes on after its last complete episode.

    Args:
        root: folder of the dataset, made if it does not exist; one writer at a time has it.
        robot: gives joints, cameras and frame rate.
        object_names: objects whose positions every frame holds; may be empty.
        image_size: (height, width) of every frame in pixels.

    Raises:
        DatasetError: the root holds something else or recordings with other features, or another writer has it.
        ConfigError: an image size or control rate that cannot be recorded.
    """

    def __init__(
        self,
        root: str | Path,
        robot: RobotSpec,
        object_names: Sequence[str] = (),
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        self.root = Path(root)
        self.robot = robot
        self.object_names = tuple(object_names)
        self.image_size = image_size
        self.num_episodes = 0
        self.num_frames = 0
        self._fps = layout.whole_fps(robot)
        self._features = layout.features_of(robot, self.object_names, image_size)
        self._tasks: list[str] = []
        self._stats: dict[str, stats.Stats] = {}
        self._take: _Take | None = None
        self._lock = files.lock_of(self.root / "meta" / LOCK)
        if (self.root / "meta" / "info.json").exists():
            self._resume()
        else:
            self._create()

    def __enter__(self) -> Self:
        """Usable in a ``with`` statement, which discards an episode that was not saved."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Discard the episode that was not saved, and leave the folder to others."""
        self.discard_episode()
        self._lock.release()

    @property
    def episode_length(self) -> int:
        """Frames of the episode being recorded, not yet saved."""
        return len(self._take.states) if self._take else 0

    def add_frame(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        state: ArrayLike,
        action: ArrayLike,
        objects: ArrayLike | None = None,
    ) -> None:
        """Append one frame to the episode being recorded.

        Args:
            images: RGB uint8 [H, W, 3] by camera of the robot; more cameras are ignored.
            state: [D], the state the action was chosen in.
            action: [D], absolute joint targets.
            objects: positions [n, 3] in the robot's base frame [m], in the order of ``object_names``.

        Raises:
            DatasetError: a camera is missing, or a shape or value does not fit; the frame is not recorded. Or a frame
                before could not be written in full; the episode must be discarded.
            OSError: the frame cannot be written in full; the episode must be discarded.
        """
        checked = {camera: self._image(images, camera) for camera in self.robot.cameras}
        width = len(self.robot.joints)
        vectors = _vector("State", state, (width,)), _vector("Action", action, (width,))
        positions = _vector("Objects", () if objects is None else objects, self._objects_shape)
        take = self._take = self._take or self._start()
        self._check_whole(take)
        take.is_whole = False
        for camera, image in checked.items():
            take.videos[camera].write(image)
            take.histograms[camera] += stats.image_histogram(image)
        take.states.append(vectors[0])
        take.actions.append(vectors[1])
        take.objects.append(positions)
        take.is_whole = True

    def save_episode(self, prompt: str, targets: Sequence[int] = (), metadata: Mapping[str, Any] | None = None) -> int:
        """Make the recorded frames an episode and start anew.

        Args:
            prompt: the instruction that was followed.
            targets: indices in ``object_names`` of the objects the instruction names: what is to be moved, and where
                it goes; at most two.
            metadata: plain values kept with the episode.

        Returns:
            The index of the episode.

        Raises:
            DatasetError: no frame was recorded, one could not be written in full, the prompt is blank, or there are no
                such targets.
        """
        if self._take is None:
            raise DatasetError("An episode without frames cannot be saved; call add_frame first.")
        self._check_whole(self._take)
        if not prompt.strip():
            raise DatasetError("The prompt of an episode is blank; expected an instruction.")
        if len(targets) > layout.NUM_TARGETS or not all(0 <= target < len(self.object_names) for target in targets):
            raise DatasetError(
                f"Targets {list(targets)}; expected at most {layout.NUM_TARGETS} indices of {list(self.object_names)}."
            )
        take, index = self._take, self.num_episodes
        task_index = self._task_index(prompt.strip())
        table = self._frames(take, task_index, targets)
        episode_stats = self._episode_stats(take)
        self._publish_videos(take)
        layout.write_table(self.root / layout.DATA_PATH.format(**layout.location(index)), table)
        row = self._episode_row(len(table), prompt.strip(), metadata or {}, episode_stats)
        layout.write_table(self._episodes_file(index), pa.Table.from_pylist([row]))
        self._stats = stats.merge_all(self._stats, episode_stats)
        self.num_episodes += 1
        self.num_frames += len(table)
        layout.write_json(self.root / "meta" / "stats.json", stats.to_lists(self._stats))
        self._write_info()
        return index

    def discard_episode(self) -> None:
        """Forget the frames recorded since the last saved episode."""
        take, self._take = self._take, None
        if take is not None:
            for camera, video in take.videos.items():
                video.abort()
                self._partial_video(camera).unlink(missing_ok=True)

    # ---- opening

    def _create(self) -> None:
        found = [path for path in self.root.rglob("*") if path.is_file() and path.suffix != files.PARTIAL]
        found = [path for path in found if path not in self._before_first_episode()]
        if found:
            raise DatasetError(f"Folder {self.root} holds {found[0].name} but no meta/info.json; expected a dataset.")
        self._take_lock()
        self._write_info()

    def _before_first_episode(self) -> set[Path]:
        """Files that a writer may have left behind that never finished an episode."""
        first = layout.location(0)
        videos = {layout.VIDEO_PATH.format(video_key=layout.IMAGES + name, **first) for name in self.robot.cameras}
        return {
            self.root / name
            for name in {f"meta/{LOCK}", "meta/tasks.parquet", layout.DATA_PATH.format(**first), *videos}
        }

    def _take_lock(self) -> None:
        busy = DatasetError(f"{self.root} is being recorded by another process; wait for it or stop it.")
        files.take(self._lock, busy)

    def _resume(self) -> None:
        self._take_lock()
        info = layout.read_info(self.root, versions=(layout.VERSION,))
        if info["features"] != self._features or info["fps"] != self._fps:
            raise DatasetError(
                f"{self.root} holds recordings at {info['fps']} fps of {_summary(info['features'])}; expected "
                f"{self._fps} fps of {_summary(self._features)}."
            )
        self.num_episodes, self.num_frames = info["total_episodes"], info["total_frames"]
        if (self.root / "meta" / "tasks.parquet").exists():
            self._tasks = list(v30.read_tasks(self.root).values())
        for index in range(self.num_episodes):
            row = layout.read_table(self._episodes_file(index)).to_pylist()[0]
            self._stats = stats.merge_all(self._stats, stats.from_lists(row))
        self._episodes_file(self.num_episodes).unlink(missing_ok=True)  # saved in full but never counted
        for partial in self.root.rglob(f"*{files.PARTIAL}"):
            partial.unlink()

    # ---- recording

    @property
    def _objects_shape(self) -> tuple[int, ...]:
        return (len(self.object_names), 3) if self.object_names else (0,)

    def _image(self, images: Mapping[str, NDArray[np.uint8]], camera: str) -> NDArray[np.uint8]:
        if camera not in images:
            raise DatasetError(
                f"No image of camera {camera!r}; expected {list(self.robot.cameras)}, got {list(images)}."
            )
        image = images[camera]
        if image.dtype != np.uint8 or image.shape != (*self.image_size, 3):
            raise DatasetError(
                f"Camera {camera!r} gave {image.dtype} {image.shape}; expected uint8 {(*self.image_size, 3)}."
            )
        return image

    def _check_whole(self, take: _Take) -> None:
        if not take.is_whole:
            raise DatasetError(
                f"Frame {len(take.states)} of the episode could not be written in full; call discard_episode and "
                "record it again."
            )

    def _partial_video(self, camera: str) -> Path:
        return self.root / "videos" / (layout.IMAGES + camera) / f"recording.mp4{files.PARTIAL}"

    def _start(self) -> _Take:
        videos = {}
        for camera in self.robot.cameras:
            path = self._partial_video(camera)
            path.parent.mkdir(parents=True, exist_ok=True)
            videos[camera] = VideoWriter(path, self.image_size, self._fps)
        return _Take(videos, {camera: np.zeros((3, 256), np.int64) for camera in self.robot.cameras})

    # ---- saving

    def _task_index(self, prompt: str) -> int:
        if prompt not in self._tasks:
            layout.write_tasks(self.root, [*self._tasks, prompt])
            self._tasks.append(prompt)
        return self._tasks.index(prompt)

    def _frames(self, take: _Take, task_index: int, targets: Sequence[int]) -> pa.Table:
        n, first = len(take.states), self.num_frames
        columns = {
            layout.STATE: _column(np.stack(take.states)),
            layout.ACTION: _column(np.stack(take.actions)),
        }
        if self.object_names:
            columns[layout.OBJECTS] = _column(np.stack(take.objects).reshape(n, -1))
            named = [*targets, *[-1] * (layout.NUM_TARGETS - len(targets))]
            columns[layout.TARGET] = _column(np.tile(np.array(named, np.int64), (n, 1)))
        columns |= {
            "timestamp": pa.array((np.arange(n) / self._fps).astype(np.float32)),
            "frame_index": pa.array(np.arange(n)),
            "episode_index": pa.array(np.full(n, self.num_episodes)),
            "index": pa.array(np.arange(first, first + n)),
            "task_index": pa.array(np.full(n, task_index)),
        }
        return pa.table(columns)

    def _publish_videos(self, take: _Take) -> None:
        self._take = None
        for video in take.videos.values():
            video.close()
        for camera in take.videos:
            key = layout.IMAGES + camera
            path = self.root / layout.VIDEO_PATH.format(video_key=key, **layout.location(self.num_episodes))
            path.parent.mkdir(parents=True, exist_ok=True)
            files.publish(self._partial_video(camera), path)

    def _episode_stats(self, take: _Take) -> dict[str, stats.Stats]:
        vectors = {layout.STATE: take.states, layout.ACTION: take.actions}
        if self.object_names:
            vectors[layout.OBJECTS] = [objects.reshape(-1) for objects in take.objects]
        result = {name: stats.vector_stats(np.stack(values)) for name, values in vectors.items()}
        for camera, histogram in take.histograms.items():
            result[layout.IMAGES + camera] = stats.image_stats(histogram, len(take.states))
        return result

    def _episode_row(
        self, length: int, prompt: str, metadata: Mapping[str, Any], episode_stats: Mapping[str, stats.Stats]
    ) -> dict[str, Any]:
        place = layout.location(self.num_episodes)
        row: dict[str, Any] = {
            "episode_index": self.num_episodes,
            "tasks": [prompt],
            "length": length,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
            "metadata": json.dumps(metadata),
        }
        for folder in ("data", "meta/episodes"):
            row |= {f"{folder}/{name}": value for name, value in place.items()}
        for camera in self.robot.cameras:
            key = f"videos/{layout.IMAGES}{camera}"
            row |= {f"{key}/{name}": value for name, value in place.items()}
            row |= {f"{key}/from_timestamp": 0.0, f"{key}/to_timestamp": length / self._fps}
        for feature, entry in stats.to_lists(episode_stats).items():
            row |= {f"stats/{feature}/{name}": value for name, value in entry.items()}
        return row

    def _episodes_file(self, index: int) -> Path:
        return self.root / layout.EPISODES_PATH.format(**layout.location(index))

    def _write_info(self) -> None:
        info = {
            "codebase_version": layout.VERSION,
            "robot_type": self.robot.name,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH,
            "features": self._features,
        }
        layout.write_json(self.root / "meta" / "info.json", info)


def _vector(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = np.array(values, np.float32)
    if array.shape != shape:
        raise DatasetError(f"{name} has shape {array.shape}; expected {shape}.")
    if not np.isfinite(array).all():
        raise DatasetError(f"{name} is {array.tolist()}; expected finite numbers.")
    return array


def _column(values: NDArray[Any]) -> pa.Array:
    """Vectors [n, d] as a column of fixed-size lists; of plain numbers where d is 1, as LeRobot has it."""
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _summary(features: Mapping[str, Any]) -> str:
    names = [layout.STATE, layout.ACTION, layout.OBJECTS, *sorted(n for n in features if n.startswith(layout.IMAGES))]
    return ", ".join(f"{name} {features[name]['shape']}" for name in names if name in features)
