"""Augmentation's laws: nothing drawn leaves a picture as it is, and each number does what its name says."""

import pytest
import torch
from torch import Tensor

from pi0_control.train.augment import saturate, turn_and_crop


def pictures(number: int = 2, side: int = 16) -> Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_whole_picture_unturned_is_itself() -> None:
    images = pictures()
    same = turn_and_crop(images, 1.0, torch.ones(2, 2), torch.zeros(2))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    saturate(same, torch.ones(2, 1, 1, 1))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)


def test_a_quarter_turn_is_counter_clockwise() -> None:
    images = pictures()
    turned = turn_and_crop(images, 1.0, torch.zeros(2, 2), torch.tensor([90.0, -90.0]))
    torch.testing.assert_close(turned[0], images[0].rot90(1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[1], images[1].rot90(-1, (1, 2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shift", "rows", "columns"), [((1, -1), slice(0, 8), slice(8, 16)), ((0, 1), slice(8, 16), slice(4, 12))]
)
def test_a_crop_lies_where_it_is_shifted(shift: tuple[int, int], rows: slice, columns: slice) -> None:
    images = pictures(1)
    seen = turn_and_crop(images, 0.5, torch.tensor([shift], dtype=torch.float32), torch.zeros(1))
    shrunk = torch.nn.functional.avg_pool2d(seen, 2)  # bilinear at half pixels: close to the part itself
    part = images[..., rows, columns]
    assert torch.corrcoef(torch.stack([shrunk.flatten(), part.flatten()]))[0, 1] > 0.9  # elsewhere it is near 0


def test_mixed_precision_moves_no_pixel() -> None:
    images, angle = pictures(), torch.tensor([3.0, -4.0])
    expected = turn_and_crop(images, 0.95, torch.ones(2, 2), angle)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(turn_and_crop(images, 0.95, torch.ones(2, 2), angle), expected)


def test_saturation_keeps_the_grey() -> None:
    images = pictures()
    changed = images.clone()
    saturate(changed, torch.tensor([0.0, 1.5]).view(2, 1, 1, 1))
    torch.testing.assert_close(changed.mean(1), images.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(changed[0], images[0].mean(0).expand(3, -1, -1))
    torch.testing.assert_close(changed[1, 0] - changed[1, 1], 1.5 * (images[1, 0] - images[1, 1]), atol=1e-5, rtol=0)
