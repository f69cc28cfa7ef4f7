"""Small recordings for tests, and the same recording in every layout that LeRobot has had."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pi0_control.robot import Joint, RobotSpec
from pi0_control.train import layout
from pi0_control.train.dataset import Dataset
from pi0_control.train.video import VideoWriter
from pi0_control.train.writer import DatasetWriter

ROBOT = RobotSpec(
    "two_joints",
    (Joint("swing", "revolute", -2, 2, 1, 1, 0), Joint("grip", "gripper", 0, 1, 1, 1, 1)),
    ("top", "wrist"),
    20.0,
)
SIZE = (32, 48)
OBJECTS = ("red block", "blue block")


def writer(root: Path, **changes) -> DatasetWriter:
    return DatasetWriter(**{"root": root, "robot": ROBOT, "object_names": OBJECTS, "image_size": SIZE, **changes})


def shade(frame: int, camera: int) -> np.ndarray:
    """A plain image whose colour tells frame and camera."""
    return np.full((*SIZE, 3), (20 + 20 * frame, 200 - 15 * frame, 60 + 90 * camera), np.uint8)


def add(recorder: DatasetWriter, length: int, first: int = 0) -> None:
    for frame in range(first, first + length):
        images = {"top": shade(frame, 0), "wrist": shade(frame, 1)}
        recorder.add_frame(images, [frame, 0.5], [frame + 0.25, 1.0], np.full((2, 3), frame / 10))


def record(recorder: DatasetWriter, length: int, prompt: str = "push the red block", targets: tuple = (0,)) -> int:
    add(recorder, length)
    return recorder.save_episode(prompt, targets, {"seed": length})


def record_three(root: Path) -> Path:
    """Episodes of 4, 2 and 3 frames, each of its own task."""
    with writer(root) as recorder:
        for length in (4, 2, 3):
            record(recorder, length, f"task {length}")
    return root


def packed(root: Path) -> None:
    """Rewrite a recording as LeRobot v3.0 does: several episodes per data file and video, here two and then the rest.

    Frames of data files need not be in order.
    """
    dataset = Dataset.open(root)
    data = [pq.read_table(episode.data) for episode in dataset.episodes]
    rows = [pq.read_table(file).to_pylist()[0] for file in sorted(root.glob("meta/episodes/*/*.parquet"))]
    for folder in ("data", "videos", "meta/episodes"):
        shutil.rmtree(root / folder)
    for file, members in enumerate(([0, 1], list(range(2, len(rows))))):
        place = {"chunk_index": 0, "file_index": file}
        _write(root / layout.DATA_PATH.format(**place), pa.concat_tables([data[member] for member in members[::-1]]))
        for camera_index, camera in enumerate(dataset.cameras):
            key, first = layout.IMAGES + camera, 0
            path = root / layout.VIDEO_PATH.format(video_key=key, **place)
            _film(path, camera_index, [dataset.episodes[member].length for member in members])
            for member in members:
                rows[member] |= {f"videos/{key}/from_timestamp": first / dataset.fps, f"videos/{key}/file_index": file}
                rows[member]["data/file_index"] = file
                first += dataset.episodes[member].length
    _write(root / layout.EPISODES_PATH.format(chunk_index=0, file_index=0), pa.Table.from_pylist(rows))


def as_v21(root: Path) -> None:
    """Rewrite a recording as LeRobot v2.1 did."""
    dataset = Dataset.open(root)
    info = json.loads((root / "meta" / "info.json").read_text())
    info |= {
        "codebase_version": "v2.1",
        "total_chunks": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    for episode in dataset.episodes:
        place = {"episode_chunk": 0, "episode_index": episode.index}
        _move(episode.data, root / info["data_path"].format(**place))
        for camera, span in episode.images.items():
            _move(span.path, root / info["video_path"].format(video_key=layout.IMAGES + camera, **place))
    shutil.rmtree(root / "meta")
    (root / "meta").mkdir()
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tasks = [{"task_index": index, "task": task} for index, task in enumerate(dataset.tasks)]
    episodes = [
        {"episode_index": e.index, "tasks": [dataset.prompt(e.start)], "length": e.length} for e in dataset.episodes
    ]
    for name, lines in (("tasks", tasks), ("episodes", episodes)):
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def with_pictures(root: Path) -> None:
    """Rewrite a recording with its images as PNG in the data instead of videos."""
    dataset = Dataset.open(root)
    info = json.loads((root / "meta" / "info.json").read_text())
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for data in {episode.data for episode in dataset.episodes}:
        table = pq.read_table(data)
        for slot, camera in enumerate(dataset.cameras):
            pictures = [{"bytes": _png(shade(step, slot)), "path": None} for step in table["frame_index"].to_pylist()]
            table = table.append_column(layout.IMAGES + camera, pa.array(pictures, kind))
        pq.write_table(table, data)
    shutil.rmtree(root / "videos")
    for camera in dataset.cameras:
        info["features"][layout.IMAGES + camera]["dtype"] = "image"
    (root / "meta" / "info.json").write_text(json.dumps(info | {"video_path": None}))


def _then(*rewrites: Callable[[Path], None]) -> Callable[[Path], None]:
    def rewrite(root: Path) -> None:
        for each in rewrites:
            each(root)

    return rewrite


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "as_written": _then(),
    "packed": packed,
    "v2.1": as_v21,
    "pictures": with_pictures,
    "packed_pictures": _then(packed, with_pictures),
    "v2.1_pictures": _then(as_v21, with_pictures),
}


def _film(path: Path, camera_index: int, lengths: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    video = VideoWriter(path, SIZE, int(ROBOT.control_rate_hz))
    for length in lengths:
        for frame in range(length):
            video.write(shade(frame, camera_index))
    video.close()


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
