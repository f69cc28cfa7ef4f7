"""LeRobotDataset v3.0 on disk, as it is written here: names, paths, features and single files.

meta/info.json                                     features, rate, totals: what it does not count does not exist
meta/stats.json                                    statistics of every feature
meta/tasks.parquet                                 task_index of every instruction
meta/episodes/chunk-000/file-000.parquet           one row per episode: task, length, where its data and videos are
data/chunk-000/file-000.parquet                    one row per frame
videos/observation.images.<camera>/chunk-000/file-000.mp4
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pi0_control import files
from pi0_control.errors import ConfigError, DatasetError
from pi0_control.robot import RobotSpec

VERSION = "v3.0"  # what is written
READABLE = ("v2.0", "v2.1", VERSION)
FILES_PER_CHUNK = 1000
STATE, ACTION = "observation.state", "action"
OBJECTS, TARGET = "observation.objects", "observation.target"  # ours, beyond LeRobot's
NUM_TARGETS = 2  # an instruction names up to two objects: what is to be moved, and where it goes
IMAGES = "observation.images."
_OTHER_NAMES = {STATE: "state", ACTION: "actions"}  # as in openpi's examples
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_ROWS_AT_ONCE = 64

_INDEX_COLUMNS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def features_of(
    robot: RobotSpec, object_names: Sequence[str], image_size: tuple[int, int]
) -> dict[str, dict[str, Any]]:
    """The ``features`` of info.json for recordings of ``robot``; ``image_size`` is (height, width) in pixels."""
    joints = list(robot.joint_names)
    features: dict[str, dict[str, Any]] = {
        STATE: {"dtype": "float32", "shape": [len(joints)], "names": joints},
        ACTION: {"dtype": "float32", "shape": [len(joints)], "names": joints},
    }
    for camera in robot.cameras:
        features[IMAGES + camera] = _video_feature(image_size, whole_fps(robot))
    if object_names:
        axes = [f"{name}.{axis}" for name in object_names for axis in "xyz"]
        features[OBJECTS] = {"dtype": "float32", "shape": [len(axes)], "names": axes}
        features[TARGET] = {"dtype": "int64", "shape": [NUM_TARGETS], "names": None}
    for name, dtype in _INDEX_COLUMNS.items():
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def _video_feature(image_size: tuple[int, int], fps: int) -> dict[str, Any]:
    height, width = image_size
    if height % 2 or width % 2 or min(height, width) < 16:
        raise ConfigError(f"Image size {image_size} cannot be recorded; expected even numbers of at least 16 pixels.")
    info = {
        "video.fps": fps,
        "video.height": height,
        "video.width": width,
        "video.channels": 3,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "has_audio": False,
    }
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": info}


def whole_fps(robot: RobotSpec) -> int:
    """Control rate as the whole number of frames per second that LeRobot stores."""
    if robot.control_rate_hz != int(robot.control_rate_hz):
        raise ConfigError(
            f"Robot {robot.name!r} runs at {robot.control_rate_hz} Hz; a LeRobotDataset needs a whole number of frames "
            "per second."
        )
    return int(robot.control_rate_hz)


def object_names_of(features: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the objects whose positions a dataset holds; empty when it holds none."""
    names = (features.get(OBJECTS) or {}).get("names") or []
    return tuple(str(name).removesuffix(".x") for name in names[::3])


def joint_names_of(features: Mapping[str, Any], feature: str) -> tuple[str, ...]:
    """Names of the numbers of a state or action, also where they are nested as in ``{"motors": ["swing", "grip"]}``.

    Empty when the dataset has none, or not one for each number.
    """
    names = tuple(_leaves(features[feature].get("names")))
    return names if len(names) == width_of(features[feature]) else ()


def _leaves(names: Any) -> Iterator[str]:
    """Texts in nested lists and mappings, in order."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, Mapping | list):
        for name in names.values() if isinstance(names, Mapping) else names:
            yield from _leaves(name)


def column_of(features: Mapping[str, Any], feature: str) -> str:
    """The name that a dataset has for its states or actions; DatasetError tells what it has instead."""
    for name in (feature, _OTHER_NAMES[feature]):
        if name in features:
            return name
    raise DatasetError(f"No feature {feature!r} nor {_OTHER_NAMES[feature]!r}; the features are {sorted(features)}.")


def width_of(feature: Mapping[str, Any]) -> int:
    """How many numbers a feature holds per frame."""
    return math.prod(feature["shape"])


def cameras_of(features: Mapping[str, Any]) -> dict[str, str]:
    """Feature of every camera by the camera's name; depth maps are left out."""
    return {
        name.removeprefix(IMAGES): name
        for name, feature in features.items()
        if feature.get("dtype") in ("video", "image") and not _is_depth_map(feature)
    }


def _is_depth_map(feature: Mapping[str, Any]) -> bool:
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def location(index: int) -> dict[str, int]:
    """Chunk and file of the ``index``-th file."""
    return {"chunk_index": index // FILES_PER_CHUNK, "file_index": index % FILES_PER_CHUNK}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file durably."""
    files.write_text(path, json.dumps(values, indent=2) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file durably."""
    files.write_file(path, lambda partial: pq.write_table(table, partial))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; DatasetError names a file that is missing or is not one."""
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DatasetError(f"No file {path}; expected a LeRobotDataset there.") from error
    except ValueError as error:
        raise DatasetError(f"File {path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise DatasetError(f"File {path} holds a {type(values).__name__}; expected a JSON object.")
    return values


def read_info(root: Path, versions: Sequence[str] = READABLE) -> dict[str, Any]:
    """Read meta/info.json; DatasetError when it is missing or describes another version of the format."""
    path = root / "meta" / "info.json"
    info = read_json(path)
    if info.get("codebase_version") not in versions:
        known = " or ".join(map(repr, versions))
        raise DatasetError(f"{path} has codebase_version {info.get('codebase_version')!r}; expected {known}.")
    expected = {"features", "fps", "total_episodes", "data_path"}
    if any(feature.get("dtype") == "video" for feature in info.get("features", {}).values()):
        expected.add("video_path")
    missing = {name for name in expected if info.get(name) is None}
    if missing:
        raise DatasetError(f"{path} lacks {sorted(missing)}; it has {sorted(info)}.")
    return info


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or those of ``columns`` that it has; DatasetError names a file that cannot be read."""
    with _opened(path) as file:
        present = file.schema_arrow.names
        return file.read(columns=None if columns is None else [name for name in columns if name in present])


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read ``columns`` of a Parquet file in pieces; DatasetError names a file that cannot be read or lacks one."""
    with _opened(path) as file:
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise DatasetError(f"File {path} has no column {missing[0]!r}; it has {file.schema_arrow.names}.")
        yield from file.iter_batches(_ROWS_AT_ONCE, columns=list(columns))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise DatasetError(f"No file {path}, although the dataset's metadata names it.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"File {path} is not a readable Parquet table: {str(error).splitlines()[0]}.") from error


def write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """Write meta/tasks.parquet as pandas would a frame of ``task_index`` with the instructions as its index."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": list(tasks)})
    columns = [
        _pandas_column("task_index", "task_index", "int64", "int64"),
        _pandas_column(None, "__index_level_0__", "unicode", "object"),
    ]
    pandas = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [{**_pandas_column(None, None, "unicode", "object"), "metadata": {"encoding": "UTF-8"}}],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    write_table(root / "meta" / "tasks.parquet", table.replace_schema_metadata({"pandas": json.dumps(pandas)}))


def _pandas_column(name: str | None, field: str | None, pandas_type: str, numpy_type: str) -> dict[str, Any]:
    return {
        "name": name,
        "field_name": field,
        "pandas_type": pandas_type,
        "numpy_type": numpy_type,
        "metadata": None,
    }


def counted(root: Path, info: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``rows`` of those episodes that info.json counts, in order; DatasetError when one is missing."""
    total = info["total_episodes"]
    known = {row["episode_index"]: row for row in rows}
    if any(index not in known for index in range(total)):
        number = sum(index < total for index in known)
        raise DatasetError(f"{root} describes {number} episodes; its info.json counts {total}.")
    return [known[index] for index in range(total)]
