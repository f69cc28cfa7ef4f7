"""Camera images to what the image encoder takes: resized with padding."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pi0_control.errors import ObservationError

Resize = Literal["pad_antialias", "lerobot_v03", "lerobot_v04", "lerobot_v05"]
"""openpi's, with which it trains and serves, and LeRobot's up to 0.3, in 0.4, and from 0.5 on."""
Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""Of images as a model takes them: bytes, or floats in [-1, 1]."""
_LEROBOT_MARGIN: dict[Resize, float] = {"lerobot_v03": -1.0, "lerobot_v04": -3.0, "lerobot_v05": -1.0}


def check_image(image: NDArray[np.uint8], name: str = "image") -> None:
    """Refuse anything but an RGB uint8 image [H, W, 3].

    Raises:
        ObservationError: another type, dtype or shape; the message names the camera.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ObservationError(f"Image {name!r} has dtype {got}; expected uint8 RGB values 0..255.")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ObservationError(f"Image {name!r} has shape {list(image.shape)}; expected [H, W, 3].")


def fit_image(image: NDArray[np.uint8], size: int, resize: Resize = "pad_antialias") -> Pixels:
    """An image as the model takes it, fitted into a square as the policy's training did it.

    openpi rounds to bytes. LeRobot does not, and samples without antialiasing; 0.3 pads only above and on the left, 0.4
    with -3.

    Args:
        image: RGB uint8 [H, W, 3].
        size: side of the result in pixels.
        resize: how.

    Returns:
        [size, size, 3]: uint8 for ``pad_antialias``, else float32 in [-1, 1], but for the margins of ``lerobot_v04``.

    Raises:
        ObservationError: not an RGB uint8 image.
    """
    if resize == "pad_antialias":
        return resize_with_pad(image, size)
    check_image(image)
    top, left, height, width = _inner_box(image, size)
    if resize == "lerobot_v03":
        top, left = size - height, size - width
    unit = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    inner = torch.nn.functional.interpolate(unit, (height, width), mode="bilinear", align_corners=False).clamp(0, 1)
    fitted = np.full((size, size, 3), _LEROBOT_MARGIN[resize], np.float32)
    fitted[top : top + height, left : left + width] = (inner[0] * 2 - 1).permute(1, 2, 0).numpy()
    return fitted


def resize_with_pad(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Fit an image into a square without changing its aspect ratio, on black.

    Bilinear with antialiasing, centred, sizes truncated; when a margin is odd its larger half goes below and right,
    as openpi trains and serves. An image that already has the size comes back unchanged.

    Args:
        image: RGB uint8 [H, W, 3].
        size: side of the result in pixels.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ObservationError: not an RGB uint8 image.
    """
    check_image(image)
    if image.shape[:2] == (size, size):
        return image
    top, left, height, width = _inner_box(image, size)
    inner = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    padded = np.zeros((size, size, 3), np.uint8)
    padded[top : top + height, left : left + width] = np.asarray(inner)
    return padded


def _inner_box(image: NDArray[np.uint8], size: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the image in a square, centred."""
    height, width = image.shape[:2]
    ratio = max(width / size, height / size)
    height, width = max(1, int(height / ratio)), max(1, int(width / ratio))
    return (size - height) // 2, (size - width) // 2, height, width
