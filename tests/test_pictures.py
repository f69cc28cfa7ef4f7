from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import LAYOUTS, packed, record_three, shade, with_pictures

from pi0_control.errors import DatasetError
from pi0_control.train.dataset import Dataset
from pi0_control.train.pictures import read_images, read_moments


@pytest.mark.parametrize("rewrite", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_few_moments_are_those_asked_for(tmp_path: Path, rewrite):
    rewrite(record_three(tmp_path))
    dataset = Dataset.open(tmp_path)
    for episode, steps in zip(dataset.episodes, ([0, 3], [1, 0], [2]), strict=True):
        moments = read_moments(episode, "wrist", dataset.fps, steps)
        for step, image in zip(steps, moments, strict=True):
            assert image.shape == (32, 48, 3)
            np.testing.assert_allclose(image[8, 8], shade(step, 1)[8, 8], atol=6)


def test_episodes_that_claim_the_same_images_are_refused(tmp_path: Path):
    packed(record_three(tmp_path))
    first, second = Dataset.open(tmp_path).episodes[:2]  # of 4 and 2 frames, in the same video
    span = replace(second.images["top"], from_s=0.15)  # the first one's last image
    overlapping = replace(second, images={**second.images, "top": span})
    with pytest.raises(DatasetError, match=r"claim 1 images of .*\.mp4 twice; expected every episode to have its own"):
        list(read_images([first, overlapping], "top", 20))


def test_a_column_without_pictures_is_named(tmp_path: Path):
    with_pictures(record_three(tmp_path))
    dataset = Dataset.open(tmp_path)
    path, column = dataset.episodes[1].data, "observation.images.top"
    table = pq.read_table(path)
    broken = pa.array([{"bytes": b"GIF?", "path": None}] * 2)
    pq.write_table(table.set_column(table.column_names.index(column), column, broken), path)
    with pytest.raises(DatasetError, match="neither PNG nor JPEG"):
        list(read_images(dataset.episodes[1:2], "top", dataset.fps))
    pq.write_table(table.drop_columns([column]), path)
    with pytest.raises(DatasetError, match=r"observation\.images\.top"):
        list(read_images(dataset.episodes[1:2], "top", dataset.fps))
