"""Checkpoint directories of every format, small or hollow."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pi0_control.model.config import Pi0Config

GOLDEN = Path(__file__).parent / "golden"


def golden_tensors(name: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"openpi_torch_{name}_tiny.safetensors", "pt") as file:
        return {key[8:]: file.get_tensor(key) for key in file.keys() if key.startswith("weights.")}  # noqa: SIM118


def golden_config(name: str) -> Pi0Config:
    """Sizes of the golden PyTorch model, as openpi describes it."""
    with safe_open(GOLDEN / f"openpi_torch_{name}_tiny.safetensors", "pt") as file:
        sizes = json.loads(file.metadata()["config"])
    vlm, expert, vision = sizes["vlm"], sizes["action_expert"], sizes["vision"]
    values = Pi0Config.preset(name).to_dict()
    values["vision"] |= {key: vision[key] for key in ("image_size", "width", "depth", "num_heads", "mlp_dim")}
    values["vision"]["patch_size"] = vision["patch"]
    values |= {key: vlm[key] for key in ("depth", "num_heads", "num_kv_heads", "head_dim")}
    values |= {key: sizes[key] for key in ("action_dim", "action_horizon", "max_token_len")}
    values |= {"prefix_width": vlm["width"], "prefix_mlp_dim": vlm["mlp_dim"], "vocab_size": sizes["vocab"]}
    values |= {"action_width": expert["width"], "action_mlp_dim": expert["mlp_dim"]}
    return Pi0Config.from_dict(values)


def golden_tree(name: str) -> dict[str, Any]:
    arrays = np.load(GOLDEN / f"{name}_tiny.npz")
    return {path[6:]: arrays[path] for path in arrays.files if path.startswith("param:")}


def torch_directory(
    directory: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any] | None = None,
    config: Pi0Config | None = None,
) -> Path:
    """model.safetensors with these tensors, config.json with these settings; a config for what no shape tells."""
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {} if config is None else {"pi0_control.model": json.dumps({"model": config.to_dict()})}
    save_file(dict(tensors), directory / "model.safetensors", metadata)
    if settings is not None:
        (directory / "config.json").write_text(json.dumps(settings))
    return directory


def golden_directory(directory: Path, name: str) -> Path:
    return torch_directory(directory, golden_tensors(name), config=golden_config(name))


def hollow_torch_directory(directory: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A file of these names and shapes in bfloat16 that takes up no room: its values are a hole in the disk."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return directory


def orbax_directory(directory: Path, tree: Mapping[str, Any], rows: int | None = None) -> Path:
    """params/ as orbax writes it, as far as a reader looks.

    Args:
        directory: gets it.
        tree: numpy arrays, tensors in bfloat16, or tensors on the meta device, of which only the shape is written.
        rows: how much of the first axis is stored in one piece; all of it if None.
    """
    import tensorstore

    params = directory / "params"
    params.mkdir(parents=True)
    described = {}
    for path, array in tree.items():
        keys, shape = path.split("/"), list(array.shape)
        kvstore = {"driver": "ocdbt", "base": params.as_uri() + "/", "path": ".".join(keys) + "/"}
        chunks = [rows, *shape[1:]] if rows and shape else shape
        spec = {"driver": "zarr", "kvstore": kvstore, "metadata": {"chunks": chunks}}
        dtype = tensorstore.bfloat16 if isinstance(array, Tensor) else array.dtype
        store = tensorstore.open(spec, create=True, dtype=dtype, shape=shape).result()
        if not isinstance(array, Tensor):
            store.write(array).result()
        elif array.device.type != "meta":
            store.write(array.view(torch.uint16).numpy().view(dtype.numpy_dtype)).result()
        described[str(tuple(keys))] = {"key_metadata": [{"key": key, "key_type": 2} for key in keys]}
    (params / "_METADATA").write_text(json.dumps({"tree_metadata": described, "use_zarr3": False}))
    return directory
