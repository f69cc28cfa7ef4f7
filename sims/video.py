"""Videos of episodes: what the cameras saw, side by side, under the instruction and the outcome."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pi0_control.files import write_file

CAMERA_PIXELS = 336
BANNER_PIXELS = 44
LABEL_PIXELS = 22
OUTCOME_PIXELS = 120
PROMPT_SIZE = 0.68
OUTCOME_S = 1.5
JPEG_QUALITY = 92
_INK, _PAPER, _GREEN, _RED = (30, 32, 36), (246, 246, 244), (22, 130, 60), (190, 40, 35)  # RGB


class Film:
    """Camera images of an episode under way, compressed twentyfold until it is known whether they make a video."""

    def __init__(self) -> None:
        self._frames: list[dict[str, NDArray[np.uint8]]] = []

    def append(self, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Keep the images (uint8 [H, W, 3] by camera) of one control period."""
        self._frames.append({name: _squeeze(image) for name, image in images.items()})

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Mapping[str, NDArray[np.uint8]]:
        """The images of one control period, nearly as they were."""
        return {name: _unsqueeze(jpeg) for name, jpeg in self._frames[index].items()}


def write_video(
    path: Path, frames: Sequence[Mapping[str, NDArray[np.uint8]]] | Film, prompt: str, is_success: bool, fps: int
) -> None:
    """Write an MP4 (H.264) of one episode.

    Args:
        frames: camera images (uint8 [H, W, 3] by name) of each control period.
        prompt: the instruction, written above the images.
        is_success: shown with the last image for :data:`OUTCOME_S`.
    """
    still = compose(frames[-1], prompt, "success" if is_success else "failure")
    moving = (compose(frames[index], prompt) for index in range(len(frames)))
    pictures = chain(moving, [still] * round(OUTCOME_S * fps))
    write_file(path, lambda partial: _encode(partial, pictures, still.shape[:2], fps))


def _encode(path: Path, pictures: Iterable[NDArray[np.uint8]], size: tuple[int, ...], fps: int) -> None:
    """Encode pictures of one size (height, width)."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def compose(images: Mapping[str, NDArray[np.uint8]], prompt: str, outcome: str = "") -> NDArray[np.uint8]:
    """One picture: cameras side by side, named, with ``prompt`` and ``outcome`` above; RGB uint8, even sides."""
    size = (CAMERA_PIXELS, CAMERA_PIXELS)
    views = []
    for name, image in images.items():
        view = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
        framed = cv2.copyMakeBorder(view, 0, LABEL_PIXELS, 2, 2, cv2.BORDER_CONSTANT, value=_PAPER).astype(np.uint8)
        write_text(framed, name, (8, CAMERA_PIXELS + LABEL_PIXELS - 7), 0.42)
        views.append(framed)
    row = np.hstack(views)
    banner = np.full((BANNER_PIXELS, row.shape[1], 3), _PAPER, np.uint8)
    (width, _), _ = cv2.getTextSize(prompt, cv2.FONT_HERSHEY_SIMPLEX, PROMPT_SIZE, 1)
    room = row.shape[1] - OUTCOME_PIXELS - 24
    write_text(banner, prompt, (12, 29), PROMPT_SIZE * min(1.0, room / max(width, 1)), _INK)
    if outcome:
        write_text(
            banner,
            outcome,
            (row.shape[1] - OUTCOME_PIXELS, 29),
            PROMPT_SIZE,
            _GREEN if outcome == "success" else _RED,
            2,
        )
    return np.vstack([banner, row])


def write_text(
    image: NDArray[np.uint8],
    text: str,
    at: tuple[int, int],
    size: float,
    colour: tuple[int, int, int] = _INK,
    weight: int = 1,
) -> None:
    """Write into an RGB image, in place; ``at`` is the left end of the baseline (x, y)."""
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, weight, cv2.LINE_AA)


def _squeeze(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].astype(np.uint8)


def _unsqueeze(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
