from dataclasses import replace
from pathlib import Path

import numpy as np
from recordings import record_three, shade

from pi0_control.train.contact_sheet import NOTHING, contact_sheet
from pi0_control.train.dataset import Dataset
from pi0_control.train.inspection import glimpse


def pixels_like(sheet: np.ndarray, colour: np.ndarray) -> int:
    return int((np.abs(sheet.astype(int) - colour).max(-1) <= 6).sum())


def test_every_moment_is_on_the_sheet_and_what_cannot_be_read_is_blank(tmp_path: Path):
    dataset = Dataset.open(record_three(tmp_path))
    looks = glimpse(dataset, moments=4)
    sheet = contact_sheet(looks, dataset.fps, "three episodes")
    cell = pixels_like(sheet, shade(3, 0)[0, 0])
    assert cell > 100 * 100  # shown once, by the episode of four frames
    assert 2.8 < pixels_like(sheet, shade(0, 1)[0, 0]) / cell < 3.2  # the first moment of each episode
    blind = replace(looks[0], images={**looks[0].images, "top": ()})
    sheet = contact_sheet([blind, *looks[1:]], dataset.fps, "three episodes")
    assert pixels_like(sheet, shade(3, 0)[0, 0]) == 0
    assert pixels_like(sheet, np.array(NOTHING)) > 3.5 * cell


def test_a_long_instruction_does_not_widen_the_sheet(tmp_path: Path):
    dataset = Dataset.open(record_three(tmp_path))
    looks = glimpse(dataset)
    long = [replace(look, prompt=look.prompt * 100) for look in looks]
    shape = contact_sheet(looks, dataset.fps, "title").shape
    assert contact_sheet(long, dataset.fps, "title" * 100).shape == shape
