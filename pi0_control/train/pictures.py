"""Images of episodes wherever they are stored: in videos, or as PNG or JPEG in a column of the data."""

import io
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pi0_control.errors import DatasetError
from pi0_control.train import layout
from pi0_control.train.episode import Episode
from pi0_control.train.video import read_video

Picture = NDArray[np.uint8]


def read_images(episodes: Sequence[Episode], camera: str, fps: float) -> Iterator[tuple[int, Picture]]:
    """Yield (frame of the dataset, RGB uint8 [H, W, 3]) for episodes whose images lie in the same file.

    Raises:
        DatasetError: the file is missing or broken, lacks some of the images, or two episodes claim the same one.
    """
    span = episodes[0].images[camera]
    wanted = {
        _place(episode, camera, step, fps): episode.start + step
        for episode in episodes
        for step in range(episode.length)
    }
    total = sum(episode.length for episode in episodes)
    if len(wanted) < total:
        raise DatasetError(
            f"Episodes claim {total - len(wanted)} images of {span.path} twice; expected every episode to have its own."
        )
    for place, image in _read_pictures(span.path, span.column) if span.column else _read_frames(span.path, fps):
        index = wanted.pop(place, None)
        if index is not None:
            yield index, image
    if wanted:
        raise DatasetError(f"File {span.path} lacks {len(wanted)} of the {total} images that its episodes need.")


def read_moments(episode: Episode, camera: str, fps: float, steps: Sequence[int]) -> list[Picture]:
    """A few images of one episode, RGB uint8 [H, W, 3], without decoding all of a file.

    Raises:
        DatasetError: the file is missing or broken, or lacks one of the images.
    """
    span = episode.images[camera]
    if span.column is None:
        return [_read_frame(span.path, span.from_s + step / fps, fps) for step in steps]
    rows = {place: value for place, value in _read_column(span.path, span.column) if place[0] == episode.index}
    missing = [step for step in steps if (episode.index, step) not in rows]
    if missing:
        raise DatasetError(f"File {span.path} lacks image {missing[0]} of episode {episode.index}.")
    return [_decoded(rows[episode.index, step], span.path) for step in steps]


def _place(episode: Episode, camera: str, step: int, fps: float) -> Hashable:
    """Where an image is in its file: its number in a video, episode and step in a table."""
    span = episode.images[camera]
    return (episode.index, step) if span.column else round(span.from_s * fps) + step


def _read_frames(path: Path, fps: float) -> Iterator[tuple[Hashable, Picture]]:
    for time_s, image in read_video(path):
        yield round(time_s * fps), image


def _read_frame(path: Path, time_s: float, fps: float) -> Picture:
    for found_s, image in read_video(path, time_s):
        if abs(found_s - time_s) * fps < 0.5:
            return image
    raise DatasetError(f"Video {path} has no frame at {time_s:.2f} s, although an episode needs one.")


def _read_pictures(path: Path, column: str) -> Iterator[tuple[Hashable, Picture]]:
    for place, value in _read_column(path, column):
        yield place, _decoded(value, path)


def _read_column(path: Path, column: str) -> Iterator[tuple[tuple[int, int], Any]]:
    """Episode, step and what the column holds, for every row."""
    for rows in layout.read_batches(path, [column, "episode_index", "frame_index"]):
        for row in rows.to_pylist():
            yield (row["episode_index"], row["frame_index"]), row[column]


def _decoded(value: Any, path: Path) -> Picture:
    """The picture in LeRobot's record of ``bytes`` and ``path``."""
    encoded = value.get("bytes") if isinstance(value, dict) else value
    try:
        return np.asarray(Image.open(io.BytesIO(encoded or b"")).convert("RGB"))
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise DatasetError(f"File {path} holds an image that is neither PNG nor JPEG.") from error
