import numpy as np
import pytest
import torch

from pi0_control.errors import ObservationError
from pi0_control.model.pi0 import in_model_range
from pi0_control.policy.images import Resize, fit_image, resize_with_pad


def content_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of everything that is not black."""
    rows, columns = np.nonzero(image.any(axis=(1, 2)))[0], np.nonzero(image.any(axis=(0, 2)))[0]
    return rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (480, 640, (28, 0, 168, 224)),
        (720, 1280, (49, 0, 126, 224)),
        (256, 256, (0, 0, 224, 224)),
        (300, 200, (0, 37, 224, 149)),
        (64, 64, (0, 0, 224, 224)),
    ],
)
def test_aspect_ratio_is_kept_and_the_rest_is_black(height: int, width: int, box: tuple[int, ...]) -> None:
    result = resize_with_pad(np.full((height, width, 3), 200, np.uint8), 224)
    assert result.shape == (224, 224, 3)
    assert result.dtype == np.uint8
    assert content_box(result) == box
    assert set(np.unique(result)) <= {0, 200}


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(resize_with_pad(image, 64), image)


def test_shrinking_averages_a_fine_pattern_instead_of_sampling_it() -> None:
    checkerboard = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = resize_with_pad(np.repeat(checkerboard[..., None], 3, axis=2), 64)
    assert np.abs(small[4:-4, 4:-4].astype(int) - 127).max() <= 2


def test_channels_stay_rgb_and_orientation_stays() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[:50, :, 0] = 255  # red above
    image[50:, :, 2] = 255  # blue below
    small = resize_with_pad(image, 20)
    assert tuple(small[2, 10]) == (255, 0, 0)
    assert tuple(small[17, 10]) == (0, 0, 255)


def in_range(image: np.ndarray) -> np.ndarray:
    return in_model_range(torch.from_numpy(image)).numpy()


def test_lerobot_pads_differently_in_each_version() -> None:
    image = np.full((300, 200, 3), 255, np.uint8)
    expected: dict[Resize, tuple[float, int]] = {
        "pad_antialias": (-1.0, 37),
        "lerobot_v03": (-1.0, 75),
        "lerobot_v04": (-3.0, 37),
        "lerobot_v05": (-1.0, 37),
    }
    for resize, (margin, left) in expected.items():
        assert fit_image(image, 224, resize).dtype == (np.uint8 if resize == "pad_antialias" else np.float32)
        fitted = in_range(fit_image(image, 224, resize))
        inside = fitted[..., 0] > 0.999
        assert np.flatnonzero(inside.all(axis=0)).tolist() == [*range(left, left + 149)]
        assert (fitted[~inside] == margin).all()


def test_lerobot_samples_without_averaging() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    fitted = fit_image(image, 4, "lerobot_v05")  # the middle of each 3x3 patch
    np.testing.assert_allclose(fitted, image[1::3, 1::3] / 255 * 2 - 1, atol=1e-6)
    assert np.abs(fitted - in_range(fit_image(image, 4))).max() > 0.2
    np.testing.assert_allclose(fit_image(image, 12, "lerobot_v04"), in_range(fit_image(image, 12)), atol=1e-6)
    with pytest.raises(ObservationError, match="expected"):
        fit_image(image[..., 0], 4, "lerobot_v05")


def test_an_extreme_aspect_ratio_still_leaves_one_pixel() -> None:
    assert resize_with_pad(np.full((2, 4000, 3), 9, np.uint8), 64).any()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        [[0, 0, 0]],
    ],
)
def test_anything_else_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ObservationError, match="expected"):
        resize_with_pad(image, 8)
