"""Camera images to what the vision tower takes: resize with padding, then [-1, 1]."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pi0_control.errors import ObservationError


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
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    ratio = max(width / size, height / size)
    inner_height, inner_width = max(1, int(height / ratio)), max(1, int(width / ratio))
    inner = Image.fromarray(image).resize((inner_width, inner_height), Image.Resampling.BILINEAR)
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    padded = np.zeros((size, size, 3), np.uint8)
    padded[top : top + inner_height, left : left + inner_width] = np.asarray(inner)
    return padded


def to_model_range(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map uint8 0..255 to float32 -1..1, any shape."""
    return image.astype(np.float32) / np.float32(255.0) * np.float32(2.0) - np.float32(1.0)
