"""One camera's video file: frames in, frames out (H.264 in MP4, by PyAV)."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import DatasetError

# Every second frame stands alone, so any frame is reached fast and unrelated frames do no harm.
_OPTIONS = {"crf": "18", "preset": "superfast", "g": "2", "bf": "0"}


class VideoWriter:
    """Encodes RGB frames of one size as they come.

    Args:
        path: the file to write; its name may have any suffix.
        size: (height, width) in pixels, both even.
        fps: frames per second.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=fps, options=_OPTIONS)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.thread_count = 1  # recorders run side by side, one per core

    def write(self, image: NDArray[np.uint8]) -> None:
        """Append one RGB frame uint8 [H, W, 3]."""
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Release the file without finishing it, be the disk full or not."""
        with suppress(av.FFmpegError):
            self._container.close()


def read_video(path: Path, from_s: float = 0.0) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield (time [s], RGB frame uint8 [H, W, 3]) for the frames of a file, in order of time.

    Args:
        path: the file.
        from_s: begin there or a little earlier, where a frame stands alone.

    Raises:
        DatasetError: the file is missing, is not a video, or breaks off.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if from_s > 0:
            container.seek(int(from_s * av.time_base))
        for frame in container.decode(stream):
            yield float(frame.time), np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def count_frames(path: Path) -> int:
    """Number of frames in a file, without decoding it; DatasetError as in :func:`read_video`."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        return stream.frames or sum(packet.pts is not None for packet in container.demux(stream))


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        with av.open(str(path)) as container:
            yield container
    except FileNotFoundError as error:
        raise DatasetError(f"No video {path}, although the dataset's metadata names it.") from error
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(f"File {path} is not a readable video: {error}.") from error
