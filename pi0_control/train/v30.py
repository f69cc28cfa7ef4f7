"""The metadata of LeRobotDataset v3.0: many episodes may share a data file and a video."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pi0_control.errors import DatasetError
from pi0_control.train import layout
from pi0_control.train.episode import Episode, ImageSpan


def read_tasks(root: Path) -> dict[int, str]:
    """Instruction of every task_index; the column that holds the text may bear any name."""
    path = root / "meta" / "tasks.parquet"
    table = layout.read_table(path)
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if "task_index" not in table.column_names or not texts:
        raise DatasetError(f"{path} has the columns {table.column_names}; expected task_index and a text column.")
    return dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))


def read_episodes(root: Path, info: Mapping[str, Any]) -> list[Episode]:
    """The episodes that info.json counts, in order; DatasetError when they are not all described."""
    cameras = layout.cameras_of(info["features"])
    videos = [name for name in cameras.values() if info["features"][name]["dtype"] == "video"]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index", "metadata"]
    for key in videos:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    rows: list[dict[str, Any]] = []
    for file in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        table = layout.read_table(file, columns)
        missing = set(columns) - {"metadata"} - set(table.column_names)
        if missing:
            raise DatasetError(f"{file} lacks the columns {sorted(missing)}.")
        rows += table.to_pylist()
    episodes: list[Episode] = []
    start = 0
    for row in layout.counted(root, info, rows):
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        data = root / info["data_path"].format(**place)
        images = {
            camera: _video(root, info, row, key) if key in videos else ImageSpan(data, column=key)
            for camera, key in cameras.items()
        }
        metadata = json.loads(row.get("metadata") or "{}")
        episodes.append(Episode(root, row["episode_index"], start, row["length"], data, images, metadata))
        start += row["length"]
    return episodes


def _video(root: Path, info: Mapping[str, Any], row: Mapping[str, Any], key: str) -> ImageSpan:
    place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    return ImageSpan(root / info["video_path"].format(video_key=key, **place), row[f"videos/{key}/from_timestamp"])
