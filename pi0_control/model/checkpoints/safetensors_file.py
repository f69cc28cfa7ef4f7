"""Safetensors files: their headers, their tensors one at a time. Nothing is unpickled."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pi0_control.errors import CheckpointError
from pi0_control.model.checkpoints.moves import Reader

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class SafetensorsFile(Reader):
    """One safetensors file.

    Attributes:
        shapes, dtypes: of every tensor by name; types that are not floating point are all ``torch.uint8`` here.
        metadata: the texts in the header.

    Raises:
        CheckpointError: no such file, or it is corrupt or cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not os.path.isfile(path):  # the pathlib way raises where a name is too long
            raise CheckpointError(f"There is no weight file {path}.")
        shapes, dtypes = {}, {}
        try:
            with safe_open(self.path, framework="pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    header = file.get_slice(name)
                    shapes[name] = tuple(header.get_shape())
                    dtypes[name] = _DTYPES.get(header.get_dtype(), torch.uint8)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error
        self.shapes, self.dtypes = shapes, dtypes

    def read(self, name: str, layer: int | None = None) -> Tensor:
        """One tensor, or one entry of its first axis, backed by the file until it is gone.

        The file is opened anew for each, so what was read does not stay mapped into memory.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} cannot be read any more: {error}.") from error
        return tensor if layer is None else tensor[layer]
