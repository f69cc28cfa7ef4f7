"""openpi's JAX checkpoints as orbax writes them, read through tensorstore: no JAX, no copy of the whole tree."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.files import read_json
from pi0_control.model.checkpoints.jax_names import LORA
from pi0_control.model.checkpoints.moves import Reader, raise_problems

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_NO_SLAB: tuple[str, int, Tensor] = ("", 0, torch.empty(0))


def params_of(directory: Path) -> Path | None:
    """The folder of the arrays, which may be given itself; None if this is no such checkpoint."""
    return next((folder for folder in (directory / "params", directory) if (folder / "_METADATA").is_file()), None)


class OrbaxTree(Reader):
    """The arrays of a checkpoint by path, ``PaliGemma/img/head/kernel``.

    A leading ``params`` and the trailing ``value`` of released checkpoints are dropped if every path has them. LoRA
    factors are merged into their matrices as they are read: ``W + scaling * A B`` in the attention, ``W + A B`` in the
    feed-forward layers, where openpi leaves out the scaling.

    Args:
        params: the folder with ``_METADATA``.
        lora_scaling: alpha / rank of adapters in the attention.

    Raises:
        ConfigError: tensorstore, which reads the format, is not installed.
        CheckpointError: not a checkpoint, or its arrays cannot be read, or adapters have no matrix to go into.
    """

    def __init__(self, params: Path, lora_scaling: float = 1.0) -> None:
        self._stores = _open_stores(params.resolve())
        self._source = str(params)
        self._slab = _NO_SLAB
        self._lora: dict[str, tuple[str, str, float]] = {}
        for name, (factor, is_scaled) in LORA.items():
            a, b = factor.format("a"), factor.format("b")
            if name in self._stores and a in self._stores and b in self._stores:
                self._lora[name] = (a, b, lora_scaling if is_scaled else 1.0)
        factors = {factor for a, b, _ in self._lora.values() for factor in (a, b)}
        self.shapes = {name: tuple(store.shape) for name, store in self._stores.items() if name not in factors}
        self.dtypes = {name: _DTYPES.get(store.dtype.name, torch.uint8) for name, store in self._stores.items()}
        self.merged = dict.fromkeys(self._lora, "LoRA merged")
        self._require_factors_that_fit()

    def read(self, name: str, layer: int | None = None) -> Tensor:
        """One array, or one entry of its first axis; neighbours that are stored in one piece are kept for the next."""
        weight = self._read(name, layer)
        if name not in self._lora:
            return weight
        a, b, scaling = self._lora[name]
        product = self._read(a, layer, keep=False).float() @ self._read(b, layer, keep=False).float()
        return weight.float() + scaling * product

    def _read(self, name: str, layer: int | None, keep: bool = True) -> Tensor:
        store = self._stores[name]
        kept, start, slab = self._slab
        if layer is not None and kept == name and start <= layer < start + len(slab):
            return slab[layer - start]
        if keep:
            del slab
            self._slab = _NO_SLAB  # its memory is needed for what comes now
        if layer is None:
            return self._load(store)
        step = max(1, store.chunk_layout.read_chunk.shape[0])
        start = layer - layer % step
        slab = self._load(store[start : min(start + step, store.shape[0])])
        if keep:
            self._slab = name, start, slab
        return slab[layer - start]

    def _load(self, store: Any) -> Tensor:
        try:
            array = store.read().result()
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"{self._source} cannot be read: {_first_line(error)}.") from error
        if array.dtype.name == "bfloat16":  # an extension of numpy that torch does not know
            return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
        return torch.from_numpy(array)

    def _require_factors_that_fit(self) -> None:
        wrong = [
            f"{a} {list(shapes[1])} and {b} {list(shapes[2])} for {name} {list(shapes[0])}"
            for name, (a, b, _) in self._lora.items()
            if not _is_product(*(shapes := [tuple(self._stores[each].shape) for each in (name, a, b)]))
        ]
        raise_problems({"wrong shape": wrong}, f"{self._source} has LoRA factors that do not fit their matrices")


def _is_product(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether A [.., m, r] times B [.., r, n] is of the shape [.., m, n]."""
    return min(len(shape), len(a), len(b)) >= 2 and a[:-1] == shape[:-1] and b == (*shape[:-2], a[-1], shape[-1])


def _open_stores(params: Path) -> dict[str, Any]:
    try:
        tensorstore = importlib.import_module("tensorstore")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "openpi's JAX checkpoints are read by the package tensorstore; pip install 'pi0-control[orbax]' brings it."
        ) from error
    described = read_json(params / "_METADATA")
    try:
        driver = "zarr3" if described.get("use_zarr3") else "zarr"
        paths = [[str(key["key"]) for key in leaf["key_metadata"]] for leaf in described["tree_metadata"].values()]
        pending = {}
        for keys in paths:
            kvstore = {"driver": "ocdbt", "base": params.as_uri() + "/", "path": ".".join(keys) + "/"}
            spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
            pending["/".join(keys)] = tensorstore.open(spec, read=True, open=True)
        stores = {path: store.result() for path, store in pending.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{params} cannot be read: {_first_line(error)}.") from error
    return _unwrapped(stores)


def _unwrapped(stores: Mapping[str, Any]) -> dict[str, Any]:
    paths = {path: path.split("/") for path in stores}
    if all(keys[0] == "params" for keys in paths.values()):
        paths = {path: keys[1:] for path, keys in paths.items()}
    if all(keys[-1:] == ["value"] for keys in paths.values()):
        paths = {path: keys[:-1] for path, keys in paths.items()}
    return {"/".join(keys): stores[path] for path, keys in paths.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
