"""Where an episode and its images lie, in whatever version of the format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ImageSpan:
    """Where the images that one camera took in an episode lie.

    Attributes:
        path: a video, or a Parquet file that holds encoded pictures.
        from_s: time in the video at which the episode begins [s].
        column: of the Parquet file; None for a video.
    """

    path: Path
    from_s: float = 0.0
    column: str | None = None


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    Attributes:
        root: the dataset it comes from, where it is number ``index``.
        start: index of its first frame among all frames that were opened together.
        length: number of frames.
        data: Parquet file that holds its frames.
        images: by camera.
        metadata: what was given to ``DatasetWriter.save_episode``.
    """

    root: Path
    index: int
    start: int
    length: int
    data: Path
    images: Mapping[str, ImageSpan]
    metadata: Mapping[str, Any]
