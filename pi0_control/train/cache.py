"""Decoded images of a dataset in one memory-mapped file, at the size the model takes."""

import errno
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pi0_control import files
from pi0_control.errors import DatasetError
from pi0_control.policy.images import resize_with_pad
from pi0_control.train.dataset import Dataset
from pi0_control.train.episode import Episode
from pi0_control.train.pictures import read_images

LOCK = "decoding.lock"
_VERSION = 1  # raise when the same videos would be decoded or resized to other pixels


def decode_images(
    dataset: Dataset,
    cameras: Sequence[str],
    size: int,
    cache_dir: str | Path,
    threads: int | None = None,
    show_progress: bool = True,
) -> NDArray[np.uint8]:
    """All frames of some cameras, resized with padding as the policy will see them.

    They are decoded once and kept in ``cache_dir`` under a name made from the dataset's files, the cameras and the
    size, so a changed dataset is decoded anew. One process decodes into a folder at a time, others wait for it.

    Args:
        dataset: N frames.
        cameras: which cameras, in the order wanted.
        size: side of the images in pixels.
        cache_dir: folder for the file, made if needed.
        threads: files decoded at the same time; by default one per core.
        show_progress: draw a progress bar on stderr.

    Returns:
        uint8 [N, cameras, size, size, 3], read-only, mapped from the file.

    Raises:
        DatasetError: a camera the dataset does not have, or a file that is missing, broken or lacks images.
        OSError: the disk has no room for the images.
    """
    unknown = [camera for camera in cameras if camera not in dataset.cameras]
    if unknown:
        raise DatasetError(f"The dataset has no camera {unknown[0]!r}; it has {list(dataset.cameras)}.")
    path = Path(cache_dir) / f"images-{size}px-{fingerprint(dataset, cameras, size)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.lock_of(path.with_name(LOCK)).acquire(blocking=True), _progress(show_progress) as progress:
            if not path.exists():  # else who had the lock before has decoded it
                _build(dataset, cameras, path, size, progress, threads or os.cpu_count() or 1)
    return np.load(path, mmap_mode="r")


def fingerprint(dataset: Dataset, cameras: Sequence[str], size: int) -> str:
    """Sixteen hex digits that change with the cameras, the size, the episodes, or the files that hold their images."""
    digest = hashlib.sha256(repr((_VERSION, tuple(cameras), size)).encode())
    for episode in dataset.episodes:
        for camera in cameras:
            span = episode.images[camera]
            stat = span.path.stat() if span.path.exists() else None
            version = (stat.st_size, stat.st_mtime_ns) if stat else None
            digest.update(repr((str(span.path.absolute()), version, span.from_s, episode.length)).encode())
            digest.update((span.column or "").encode())
    return digest.hexdigest()[:16]


def _build(dataset: Dataset, cameras: Sequence[str], path: Path, size: int, progress: Progress, threads: int) -> None:
    """Decode into ``path``; the folder is locked, so what is unfinished in it was left by a process that died."""
    for left in path.parent.glob(f"images-*{files.PARTIAL}"):
        left.unlink()
    partial = path.with_name(path.name + files.PARTIAL)
    shape = (len(dataset), len(cameras), size, size, 3)
    jobs: dict[tuple[int, Path], list[Episode]] = {}  # one per file
    for episode in dataset.episodes:
        for slot, camera in enumerate(cameras):
            jobs.setdefault((slot, episode.images[camera].path), []).append(episode)
    try:
        out = open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(partial)
        with ThreadPoolExecutor(threads) as pool:
            task = progress.add_task("decoding images", total=len(dataset) * len(cameras))

            def decode(job: tuple[int, Path]) -> None:
                slot, _ = job
                for index, image in read_images(jobs[job], cameras[slot], dataset.fps):
                    out[index, slot] = resize_with_pad(image, size)
                progress.advance(task, sum(episode.length for episode in jobs[job]))

            list(pool.map(decode, jobs))
        out.flush()
        files.publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _reserve(path: Path) -> None:
    """Take room on the disk for all of a sparse file; a mapped file that meets a full disk later kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that reserves nothing
                return
            needed = f"{error.strerror}; the decoded images take {size / 1e9:.1f} GB"
            raise OSError(error.errno, needed, str(path)) from error


def _progress(visible: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not visible)
