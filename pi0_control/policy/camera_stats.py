"""CameraStats: what one camera showed in training, by which a wrong size or swapped channels are found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

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
