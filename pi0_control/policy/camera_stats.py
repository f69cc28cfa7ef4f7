"""CameraStats: what one camera showed in training, by which a wrong size or swapped channels are found."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import ConfigError


@dataclass(frozen=True)
class CameraStats:
    """Images of one camera, before they were fitted into the model's square.

    Attributes:
        height, width: in pixels.
        mean: of red, green and blue over all images, 0..1.
    """

    height: int
    width: int
    mean: tuple[float, float, float]

    def __post_init__(self) -> None:
        sizes = (self.height, self.width)
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise ConfigError(f"A camera's height and width are {sizes}; expected two numbers of pixels.")
        is_colour = isinstance(self.mean, tuple) and len(self.mean) == 3
        if not is_colour or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in self.mean):
            raise ConfigError(f"A camera's mean is {self.mean!r}; expected red, green and blue, each 0 to 1.")

    @classmethod
    def of(cls, images: Sequence[NDArray[np.uint8]]) -> "CameraStats":
        """Of at least one RGB image uint8 [H, W, 3]; the size is the first one's."""
        red, green, blue = np.mean([image.mean((0, 1)) for image in images], axis=0) / 255
        height, width, _ = images[0].shape
        return cls(height, width, (float(red), float(green), float(blue)))

    @property
    def red_over_blue(self) -> float:
        """How much more red than blue there is, -1..1: the other way round where the channels are exchanged."""
        return self.mean[0] - self.mean[2]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_dict`."""
        return {**asdict(self), "mean": list(self.mean)}

    @classmethod
    def from_dict(cls, values: Any) -> "CameraStats":
        """Build from plain values.

        Raises:
            ConfigError: other keys, or values that are no size or no colour.
        """
        expected = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping) or {*values} != {*expected}:
            got = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise ConfigError(f"camera_stats of a camera has {got}; expected {expected}.")
        mean = values["mean"]
        return cls(values["height"], values["width"], tuple(mean) if isinstance(mean, list | tuple) else mean)
