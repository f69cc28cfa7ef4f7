"""The sizes of a model from the shapes of its tensors."""

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.model.checkpoints.moves import Shape
from pi0_control.model.config import Pi0Config, SiglipConfig

UNTOLD = ("action_horizon", "max_token_len", "num_cameras")  # what changes no tensor


class SizesOf:
    """Sizes of a public model, read from shapes one by one; what cannot be read stays as the family has it.

    Attributes:
        family: ``pi0`` or ``pi05``.
        values: fields of :class:`Pi0Config` by name, those of its ``vision`` as ``vision.width``.
        assumed: the fields that no shape told.
    """

    def __init__(self, shapes: Mapping[str, Shape], family: str) -> None:
        preset = Pi0Config.preset(family).to_dict()
        vision = preset.pop("vision")
        self.values: dict[str, Any] = {**preset, **{f"vision.{name}": value for name, value in vision.items()}}
        self.assumed = list(UNTOLD)
        self.family = family
        self._shapes = shapes

    def axis(self, name: str, axis: int) -> int | None:
        """The length of an axis of a tensor; None if there is no such tensor or axis."""
        shape = self._shapes.get(name, ())
        return shape[axis] if axis < len(shape) else None

    def read(self, size: str, name: str, axis: int) -> None:
        """Take a size from the length of an axis."""
        length = self.axis(name, axis)
        if length is not None:
            self.values[size] = length

    def count(self, size: str, prefix: str) -> None:
        """Take a size from the number of layers whose names begin like this and a number."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        layers = {found.group(1) for name in self._shapes if (found := pattern.match(name))}
        if layers:
            self.values[size] = len(layers)

    def read_tokens(self, name: str, axis: int) -> None:
        """Take the size of the square images from the number of their patches, after the size of a patch."""
        tokens = self.axis(name, axis)
        if tokens is not None:
            self.values["vision.image_size"] = isqrt(tokens) * self.values["vision.patch_size"]

    def tell(self, **known: int) -> None:
        """Set fields that a file tells; they are not assumed any more."""
        self.values |= known
        self.assumed = [name for name in self.assumed if name not in known]

    def config(self, source: Path) -> Pi0Config:
        """The model of these sizes.

        Raises:
            CheckpointError: no model can have them.
        """
        outer, inner = dict(self.values), {}
        for name in [name for name in outer if name.startswith("vision.")]:
            inner[name.removeprefix("vision.")] = outer.pop(name)
        try:
            return Pi0Config(**outer, vision=SiglipConfig(**inner))
        except ConfigError as error:
            raise CheckpointError(f"The shapes and settings in {source} are of no model: {error}") from error
