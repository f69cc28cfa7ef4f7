"""Safetensors files: their headers, their tensors one at a time. Nothing is unpickled."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pi0_control.errors import CheckpointError
from pi0_control.files import read_json
from pi0_control.model.checkpoints.moves import Reader, raise_problems

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class SafetensorsFile(Reader):
    """One safetensors file, or several that an index (``model.safetensors.index.json``) makes one of.

    Attributes:
        shapes, dtypes: of every tensor by name; types that are not floating point are all ``torch.uint8`` here.
        metadata: the texts in the header; of several files those of the first.

    Raises:
        CheckpointError: no such file, it is corrupt or cut short, or the index and the files differ.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        listed = _listed(self.path) if self.path.name == INDEX_FILE else None
        files = [self.path] if listed is None else sorted(set(listed.values()))
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            self._read_header(file)
        if listed is not None and listed != self._files:
            problems = {
                "not where the index says": sorted(name for name in listed if listed[name] != self._files.get(name)),
                "not in the index": sorted(self._files.keys() - listed.keys()),
            }
            raise_problems(problems, f"{self.path} and the files that it lists differ")

    def _read_header(self, path: Path) -> None:
        if not os.path.isfile(path):  # the pathlib way raises where a name is too long
            raise CheckpointError(f"There is no weight file {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                self.metadata = self.metadata or file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if name in self._files:
                        raise CheckpointError(f"{path} and {self._files[name]} both have a tensor {name}.")
                    header = file.get_slice(name)
                    self.shapes[name] = tuple(header.get_shape())
                    self.dtypes[name] = _DTYPES.get(header.get_dtype(), torch.uint8)
                    self._files[name] = path
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error

    def read(self, name: str, layer: int | None = None) -> Tensor:
        """One tensor, or one entry of its first axis, backed by the file until it is gone.

        The file is opened anew for each, so what was read does not stay mapped into memory.
        """
        path = self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read any more: {error}.") from error
        return tensor if layer is None else tensor[layer]


def weights_in(directory: Path) -> Path | None:
    """The weight file of a directory, or the index of several; None without one."""
    paths = (directory / WEIGHTS_FILE, directory / INDEX_FILE)
    return next((path for path in paths if path.is_file()), None)


def _listed(index: Path) -> dict[str, Path]:
    """In which file beside the index it says each tensor to be."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(files, Mapping) or not files:
        raise CheckpointError(f"{index} has no 'weight_map' of tensors and files.")
    odd = [file for file in files.values() if not isinstance(file, str) or Path(file).name != file]
    if odd:
        raise CheckpointError(f"{index} lists {odd[0]!r}; expected names of files beside it.")
    return {name: index.parent / file for name, file in files.items()}
