"""Pictures against what the cameras of a policy showed in training."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pi0_control.doctor.findings import Finding
from pi0_control.policy.camera_stats import CameraStats
from pi0_control.policy.config import PolicyConfig

Pictures = Sequence[NDArray[np.uint8]]
DARK, PLAIN, SAME = 8, 3, 8  # grey levels of 255: mean, spread within an image, difference between images
CAST = 0.03  # of red against blue that tells the two apart, in 0..1
CLEAR_CAST = 0.1  # that no other light or white balance turns round
USUAL_CAST = 0.08  # of photographs: the mean of ImageNet is 0.485, 0.456, 0.406
ASPECT_TOLERANCE = 0.02


def blank(pictures: Pictures) -> str | None:
    """What is wrong with a camera that shows nothing, in words; None where it shows something."""
    images = [picture.astype(np.int16) for picture in pictures]
    if max(image.mean() for image in images) < DARK:
        return "dark"
    if max(image.std((0, 1)).max() for image in images) < PLAIN:
        return "every image is of one plain colour"
    if len(images) > 1 and all(_is_same(image, images[0]) for image in images[1:]):
        return "the same image throughout"
    return None


def _is_same(image: NDArray[np.int16], other: NDArray[np.int16]) -> bool:
    return image.shape == other.shape and int(np.abs(image - other).max()) <= SAME


def check_cameras(config: PolicyConfig, images: Mapping[str, Pictures]) -> Iterator[Finding]:
    """Cameras that are missing, show nothing, have another size or other colours.

    Args:
        config: of the policy; colours and sizes are known where it has ``camera_stats``.
        images: some pictures by camera of the robot.
    """
    for camera in (name for name in config.cameras.values() if name is not None):
        pictures = images.get(camera, ())
        if not len(pictures):
            is_required = camera in config.required_cameras
            yield Finding(
                "error" if is_required else "warning",
                "camera missing",
                camera,
                f"there are {sorted(name for name in images if len(images[name]))}",
                "needed" if is_required else "may be missing, and is masked then",
                f"record it, or say what it is called: --cameras {camera} NAME",
            )
            continue
        if nothing := blank(pictures):
            yield Finding("warning", "blank camera", camera, nothing, "a scene", "look at the camera and its topic")
        yield from _size(camera, pictures, config.camera_stats.get(camera), config.model.vision.image_size)
        yield from _channels(camera, pictures, config.camera_stats.get(camera))


def _size(camera: str, pictures: Pictures, known: CameraStats | None, wanted: int) -> Iterator[Finding]:
    sizes = sorted({picture.shape[:2] for picture in pictures})
    height, width = sizes[0]
    if len(sizes) > 1:
        seen = ", ".join(f"{width}x{height}" for height, width in sizes)
        yield Finding("error", "image size", camera, seen, "one size", "set the camera to one resolution")
    elif known is not None and abs(width / height / (known.width / known.height) - 1) > ASPECT_TOLERANCE:
        is_turned = (height, width) == (known.width, known.height)
        yield Finding(
            "error",
            "image aspect",
            camera,
            f"{width}x{height}",
            f"{known.width}x{known.height}",
            "turn the image by 90°"
            if is_turned
            else "crop or pad the image as the training data was, or set the camera to that resolution",
        )
    elif max(height, width) < min(wanted, max(known.height, known.width) if known else wanted):
        yield Finding(
            "warning",
            "image size",
            camera,
            f"{width}x{height}",
            f"{known.width}x{known.height}" if known else f"{wanted} pixels or more",
            f"the policy looks at {wanted}x{wanted}: smaller images are enlarged and blurred",
        )


def _channels(camera: str, pictures: Pictures, known: CameraStats | None) -> Iterator[Finding]:
    seen, expected = CameraStats.of(pictures).red_over_blue, known.red_over_blue if known else USUAL_CAST
    is_swapped = abs(expected) > CAST and abs(seen + expected) < abs(seen - expected) / 2
    if not (is_swapped if known else seen < -CAST):
        return
    is_clear = known is not None and abs(expected) >= CLEAR_CAST
    if is_clear:
        change = "red and blue are exchanged: send RGB (OpenCV reads BGR), with the right encoding"
    elif known:
        change = (
            "light and white balance as in training? if so, red and blue are exchanged: send RGB (OpenCV reads BGR)"
        )
    else:
        change = "unless the scene is bluish, red and blue are exchanged: send RGB (OpenCV reads BGR)"
    yield Finding(
        "error" if is_clear else "warning",
        "swapped channels",
        camera,
        f"red {seen:+.2f} against blue",
        f"{expected:+.2f}" if known else f"not known; {USUAL_CAST:+.2f} in photographs on average",
        change,
    )
