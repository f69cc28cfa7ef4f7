"""The metadata of LeRobotDataset v2.0 and v2.1: JSON lines, and one data file and one video per episode and camera.

meta/info.json
meta/tasks.jsonl                                   {"task_index": 0, "task": "fold the cloth"}
meta/episodes.jsonl                                {"episode_index": 0, "tasks": ["fold the cloth"], "length": 266}
data/chunk-000/episode_000000.parquet
videos/chunk-000/observation.images.<camera>/episode_000000.mp4
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi0_control.errors import DatasetError
from pi0_control.train import layout
from pi0_control.train.episode import Episode, ImageSpan


def read_tasks(root: Path) -> dict[int, str]:
    """Instruction of every task_index."""
    return {row["task_index"]: row["task"] for row in _read_lines(root / "meta" / "tasks.jsonl", "task_index", "task")}


def read_episodes(root: Path, info: Mapping[str, Any]) -> list[Episode]:
    """The episodes that info.json counts, in order; DatasetError when they are not all described."""
    cameras = layout.cameras_of(info["features"])
    rows = _read_lines(root / "meta" / "episodes.jsonl", "episode_index", "length")
    episodes: list[Episode] = []
    start = 0
    for row in layout.counted(root, info, rows):
        index = row["episode_index"]
        place = {"episode_chunk": index // info.get("chunks_size", layout.FILES_PER_CHUNK), "episode_index": index}
        data = root / info["data_path"].format(**place)
        images = {
            camera: ImageSpan(root / info["video_path"].format(video_key=key, **place))
            if info["features"][key]["dtype"] == "video"
            else ImageSpan(data, column=key)
            for camera, key in cameras.items()
        }
        episodes.append(Episode(root, index, start, row["length"], data, images, {}))
        start += row["length"]
    return episodes


def _read_lines(path: Path, *names: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; DatasetError when one lacks any of ``names``."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError as error:
        raise DatasetError(f"No file {path}; a LeRobotDataset v2.1 has one.") from error
    except ValueError as error:
        raise DatasetError(f"File {path} is not one JSON object per line: {error}.") from error
    for row in rows:
        if not isinstance(row, dict) or any(name not in row for name in names):
            raise DatasetError(f"File {path} holds {row!r}; expected an object with {' and '.join(names)}.")
    return rows
