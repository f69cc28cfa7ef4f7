"""Decoded images are those of their frames, from whatever layout, and never stale."""

from pathlib import Path

import numpy as np
import pytest
from recordings import LAYOUTS, SIZE, record, record_three, shade, writer

from pi0_control.errors import DatasetError
from pi0_control.train.cache import decode_images
from pi0_control.train.dataset import Dataset
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
    assert not list((tmp_path / "cache").iterdir())
