"""Decoded images are those of their frames, from whatever layout, and never stale."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from recordings import LAYOUTS, SIZE, record, record_three, shade, writer

from pi0_control.errors import DatasetError
from pi0_control.train import cache
from pi0_control.train.cache import decode_images
from pi0_control.train.dataset import Dataset
from pi0_control.train.pictures import read_images
from pi0_control.train.video import VideoWriter


def check_pixels(dataset: Dataset, images: np.ndarray) -> None:
    """Every image shows the shade of its frame and camera (within what the codec costs), padded to a square."""
    for index in range(len(dataset)):
        frame = index - dataset.episodes[dataset.episode_index[index]].start
        for slot, camera in enumerate(("wrist", "top")):
            expected = shade(frame, ("top", "wrist").index(camera))[0, 0]
            np.testing.assert_allclose(images[index, slot, 8, 8], expected, atol=6)
            assert not images[index, slot, :2].any()


@pytest.mark.parametrize("rewrite", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_decoded_images_are_those_of_their_frames(tmp_path: Path, rewrite):
    rewrite(record_three(tmp_path / "data"))
    dataset = Dataset.open(tmp_path / "data")
    images = decode_images(dataset, ("wrist", "top"), 16, tmp_path / "cache", threads=2)
    assert images.shape == (9, 2, 16, 16, 3)
    check_pixels(dataset, images)


def test_a_stale_cache_is_never_used(tmp_path: Path):
    with writer(tmp_path / "data") as recorder:
        record(recorder, 2)
        dataset = Dataset.open(tmp_path / "data")
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
        kept = list((tmp_path / "cache").iterdir())
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
        assert list((tmp_path / "cache").iterdir()) == kept  # nothing new, nothing partial
        record(recorder, 3)
    images = decode_images(Dataset.open(tmp_path / "data"), ("top",), 16, tmp_path / "cache", threads=1)
    assert images.shape[0] == 5


def test_a_video_that_breaks_off_is_named(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 3)
    dataset = Dataset.open(tmp_path)
    path = dataset.episodes[0].images["top"].path
    short = VideoWriter(path, SIZE, 20)
    short.write(shade(0, 0))
    short.close()
    with pytest.raises(DatasetError, match="lacks 2 of the 3 images"):
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match="not a readable video"):
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
    path.unlink()
    with pytest.raises(DatasetError, match="No video"):
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
    with pytest.raises(DatasetError, match="no camera 'side'"):
        decode_images(dataset, ("side",), 16, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("images-*"))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room for files")
def test_room_is_taken_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = Dataset.open(record_three(tmp_path / "data"))
    sparse = []

    def look(*arguments):
        sparse.extend(
            each for each in (tmp_path / "cache").glob("images-*") if 512 * each.stat().st_blocks < each.stat().st_size
        )
        return read_images(*arguments)

    monkeypatch.setattr(cache, "read_images", look)
    decode_images(dataset, ("top",), 224, tmp_path / "cache", threads=1)
    assert not sparse


def test_a_full_disk_is_one_sentence_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = Dataset.open(record_three(tmp_path / "data"))
    folder = tmp_path / "cache"
    folder.mkdir()
    path = folder / f"images-16px-{cache.fingerprint(dataset, ('top',), 16)}.npy"
    path.with_name(f"{path.name}.17.partial").write_bytes(b"left by a run that was killed")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(OSError, match=r"No space left on device; the decoded images take 0\.0 GB: '.*images-16px"):
            decode_images(dataset, ("top",), 16, folder, threads=1)
    assert not list(folder.glob("images-*"))


def test_two_that_decode_the_same_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = Dataset.open(record_three(tmp_path / "data"))
    began, files = threading.Event(), []

    def decode():
        began.set()
        return decode_images(dataset, ("wrist", "top"), 16, tmp_path / "cache", threads=1, show_progress=False)

    with ThreadPoolExecutor(2) as pool:
        others = []

        def read(episodes, camera, fps):
            files.append((camera, episodes[0].index))
            if not others:
                others.append(pool.submit(decode))
                assert began.wait(60)
                with pytest.raises(TimeoutError):  # it waits, and never finishes what was not whole
                    others[0].result(0.5)
            return read_images(episodes, camera, fps)

        monkeypatch.setattr(cache, "read_images", read)
        first = pool.submit(decode_images, dataset, ("wrist", "top"), 16, tmp_path / "cache", 1, False)
        for images in (first.result(60), others[0].result(60)):
            check_pixels(dataset, images)
    assert len(files) == len(set(files)) == 6
