"""Datasets as the doctor looks at them."""

from pathlib import Path

import numpy as np
import pytest
from recordings import LAYOUTS, ROBOT, SIZE, record_three, shade

from pi0_control.train.dataset import Dataset
from pi0_control.train.recording import camera_stats, read_recording


@pytest.mark.parametrize("rewrite", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_dataset_of_any_layout_comes_whole(tmp_path: Path, rewrite) -> None:
    rewrite(record_three(tmp_path))
    dataset, recording = Dataset.open(tmp_path), read_recording(tmp_path, {})
    assert np.array_equal(recording.states, dataset.states)
    assert np.array_equal(recording.actions, dataset.actions)
    assert recording.episode.tolist() == [0] * 4 + [1] * 2 + [2] * 3
    assert (recording.rate_hz, recording.state_names) == (20.0, ROBOT.joint_names)
    assert {camera: len(images) for camera, images in recording.images.items()} == {"top": 9, "wrist": 9}


def test_cameras_go_by_the_names_of_the_robot(tmp_path: Path) -> None:
    record_three(tmp_path)
    exchanged = read_recording(tmp_path, {"top": "wrist"})
    assert {*exchanged.images} == {"top"}  # and what the dataset calls top is nobody's
    np.testing.assert_allclose(exchanged.images["top"][0][8, 8], shade(0, 1)[8, 8], atol=6)
    assert {*read_recording(tmp_path, {"head": "wrist"}).images} == {"top", "head"}


def test_what_cameras_show_is_measured(tmp_path: Path) -> None:
    seen = camera_stats(Dataset.open(record_three(tmp_path)), {"head": "wrist", "none": "top"})
    frames = [shade(step, 1)[0, 0] / 255 for length in (4, 2, 3) for step in range(length)]
    assert (seen["head"].height, seen["head"].width) == SIZE
    np.testing.assert_allclose(seen["head"].mean, np.mean(frames, 0), atol=0.02)
