"""Weights on disk: our own strict safetensors, and openpi's PyTorch and JAX names mapped to ours. Nothing is unpickled.

Our names, with layers counted by {i}: ``vision.{stem,position,blocks.{i},norm,head}``, ``embedding``,
``prefix_layers.{i}`` and ``suffix_layers.{i}`` with ``norm1, qkv, out, norm2, gate_up, down``, ``prefix_norm``,
``suffix_norm`` and the projections as openpi calls them. Queries, keys and values are one matrix, gate and up another.
"""

import importlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.model.pi0 import Pi0

State = dict[str, Tensor]


def save_weights(model: Pi0, path: str | Path) -> None:
    """Write the model's weights to a safetensors file."""
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})


def load_weights(model: Pi0, path: str | Path) -> None:
    """Read what :func:`save_weights` wrote into the model, cast to the model's dtypes.

    Raises:
        CheckpointError: no such file, not a whole safetensors file, or names and shapes that are not the model's.
    """
    load_state(model, read_safetensors(path), str(path))


def read_safetensors(path: str | Path) -> State:
    """All tensors of a safetensors file by name.

    Raises:
        CheckpointError: no such file, or it is corrupt or cut short.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"There is no weight file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error


def load_state(model: Pi0, state: Mapping[str, Tensor], source: str = "state") -> None:
    """Put tensors with our names into the model; every name and shape must agree.

    A model on the meta device takes the tensors themselves, any other copies them.

    Raises:
        CheckpointError: lists the missing, unexpected and wrongly shaped names.
    """
    _require_match(state, model.state_dict(), source)
    model.load_state_dict(state, assign=model.device.type == "meta")


@dataclass(frozen=True)
class LoadReport:
    """What a public checkpoint did not bring, because the model has switches on that public models do not have.

    Attributes:
        fresh: names of the model that keep their initial values.
        unused: names of the checkpoint that the model has no place for.
    """

    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def load_public_checkpoint(model: Pi0, state: Mapping[str, Tensor], allow_arch_change: bool = False) -> LoadReport:
    """Put public weights, already under our names, into the model.

    The state must fit the public model of the same sizes exactly. A model with other switches on computes something
    else with these weights, so it is refused unless ``allow_arch_change``; what it has of its own stays fresh.

    Raises:
        CheckpointError: a switch is on and not allowed, or names or shapes are not the public model's.
    """
    changed = model.config.changed_switches
    if changed and not allow_arch_change:
        raise CheckpointError(
            f"The model has {', '.join(changed)} switched on, which no public checkpoint was trained with; "
            "switch it off or pass allow_arch_change=True to fine-tune from these weights."
        )
    with torch.device("meta"):
        twin = Pi0(model.config.public_twin())
    _require_match(state, twin.state_dict(), "The public checkpoint")
    own = model.state_dict()
    report = LoadReport(tuple(sorted(set(own) - set(state))), tuple(sorted(set(state) - set(own))))
    if report.fresh and model.device.type == "meta":
        raise CheckpointError("A model with fresh parameters cannot be loaded on the meta device; give it a real one.")
    kept = {name: own[name] for name in report.fresh}
    load_state(model, {**{name: state[name] for name in own if name in state}, **kept}, "The public checkpoint")
    return report


_PALIGEMMA = "paligemma_with_expert.paligemma."
_VISION = _PALIGEMMA + "model.vision_tower.vision_model."
_LANGUAGE = _PALIGEMMA + "model.language_model."
_EXPERT = "paligemma_with_expert.gemma_expert."

_UNUSED_HEAD = _EXPERT + "lm_head.weight"
_TIED_EMBEDDING = (_LANGUAGE + "embed_tokens.weight", _PALIGEMMA + "lm_head.weight")
_OPENPI_TORCH_STEMS = {
    _VISION + "embeddings.patch_embedding": "vision.stem",
    _VISION + "embeddings.position_embedding.weight": "vision.position",
    _VISION + "encoder.layers": "vision.blocks",
    _VISION + "post_layernorm": "vision.norm",
    _PALIGEMMA + "model.multi_modal_projector.linear": "vision.head",
    _LANGUAGE + "layers": "prefix_layers",
    _LANGUAGE + "norm": "prefix_norm",
    _EXPERT + "model.layers": "suffix_layers",
    _EXPERT + "model.norm": "suffix_norm",
}
_OPENPI_TORCH_PARTS = {
    "self_attn.q_proj": "qkv#0",
    "self_attn.k_proj": "qkv#1",
    "self_attn.v_proj": "qkv#2",
    "self_attn.o_proj": "out",
    "self_attn.out_proj": "out",
    "mlp.gate_proj": "gate_up#0",
    "mlp.up_proj": "gate_up#1",
    "mlp.down_proj": "down",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
}
_FUSED_PARTS = {"qkv": 3, "gate_up": 2}


def from_openpi_torch(tensors: Mapping[str, Tensor]) -> State:
    """openpi's PyTorch state dict under our names.

    The tied embedding is taken from either of its names or both; the unused output head of the action expert is
    skipped. Unknown names stay as they are, for the loader to list.
    """
    state = {_from_openpi_torch_name(name): tensor for name, tensor in tensors.items() if name not in _TIED_EMBEDDING}
    state.pop(_UNUSED_HEAD, None)
    for name in _TIED_EMBEDDING:
        if name in tensors:
            state.setdefault("embedding.weight", tensors[name])
    return _fuse(state)


def _from_openpi_torch_name(name: str) -> str:
    for theirs, ours in _OPENPI_TORCH_STEMS.items():
        if name == theirs or name.startswith(theirs + "."):
            name = ours + name[len(theirs) :]
            break
    for theirs, ours in _OPENPI_TORCH_PARTS.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    if name.startswith(("prefix_", "suffix_")):
        name = re.sub(r"(norm\d?)\.weight$", r"\1.scale", name).replace(".dense.", ".modulation.")
    return name


def _fuse(state: State) -> State:
    """Join ``qkv#0``, ``qkv#1``, .. into ``qkv`` where all parts are there."""
    fused: State = {}
    for name, tensor in state.items():
        part = re.fullmatch(r"(.*\.)(qkv|gate_up)#\d(\..*)", name)
        if part is None:
            fused[name] = tensor
            continue
        before, what, after = part.groups()
        names = [f"{before}{what}#{index}{after}" for index in range(_FUSED_PARTS[what])]
        if not all(each in state for each in names):
            fused[name] = tensor
        elif name == names[0]:
            fused[before + what + after] = torch.cat([state[each] for each in names])
    return fused


def read_openpi_jax(directory: str | Path) -> dict[str, Any]:
    """The arrays of an openpi checkpoint directory (``params/`` as orbax writes it) by path; needs no JAX.

    Raises:
        ConfigError: tensorstore, which reads the format, is not installed.
        CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    params = Path(directory).resolve() / "params"
    metadata = params / "_METADATA"
    if not metadata.is_file():
        raise CheckpointError(f"{directory} is not an openpi JAX checkpoint; expected a file params/_METADATA in it.")
    try:
        tensorstore = importlib.import_module("tensorstore")
    except ModuleNotFoundError as error:
        raise ConfigError("Reading openpi's JAX checkpoints needs the package tensorstore; install it.") from error
    try:
        described = json.loads(metadata.read_text())
        driver = "zarr3" if described.get("use_zarr3") else "zarr"
        paths = [[key["key"] for key in leaf["key_metadata"]] for leaf in described["tree_metadata"].values()]
        arrays = {}
        for keys in paths:
            store = {"driver": "ocdbt", "base": params.as_uri() + "/", "path": ".".join(keys) + "/"}
            arrays["/".join(keys)] = tensorstore.open({"driver": driver, "kvstore": store}).result().read().result()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{params} cannot be read: {str(error).splitlines()[0]}.") from error
    return arrays


def from_openpi_jax(tree: Mapping[str, Any]) -> State:
    """openpi's JAX parameters under our names.

    Args:
        tree: arrays by path, ``PaliGemma/llm/layers/attn/q_einsum/w``; a leading ``params`` and the trailing ``value``
            of released checkpoints are dropped if every path has them.

    Raises:
        CheckpointError: leaves are missing, unknown, or LoRA factors that must be merged first.
    """
    leaves = _jax_leaves(tree)
    try:
        state = {**_vision_from_jax(leaves), "embedding.weight": leaves[f"{_LLM}/embedder/input_embedding"]}
        for expert, ending in (("prefix", ""), ("suffix", "_1")):
            state.update(_expert_from_jax(leaves, expert, ending))
        for name in sorted({path.split("/")[0] for path in leaves} - {"PaliGemma"}):
            state.update({f"{name}.weight": leaves[f"{name}/kernel"].mT, f"{name}.bias": leaves[f"{name}/bias"]})
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f"The JAX tree has arrays whose shapes do not belong together: {error}.") from error
    return {name: tensor.contiguous() for name, tensor in state.items()}


_IMG, _LLM = "PaliGemma/img", "PaliGemma/llm"
_BLOCK = f"{_IMG}/Transformer/encoderblock"
_VISION_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_EXPERT_NORMS = (f"{_LLM}/layers/pre_attention_norm", f"{_LLM}/layers/pre_ffw_norm", f"{_LLM}/final_norm")


def _jax_paths(is_pi05: bool) -> set[str]:
    """Every leaf of a π0 (50) or π0.5 (51) tree."""
    linears = [f"{_IMG}/embedding", f"{_IMG}/head", f"{_BLOCK}/MlpBlock_0/Dense_0", f"{_BLOCK}/MlpBlock_0/Dense_1"]
    linears += [f"{_VISION_ATTENTION}/{part}" for part in ("query", "key", "value", "out")]
    linears += ["action_in_proj", "action_out_proj"]
    linears += (
        ["time_mlp_in", "time_mlp_out"] if is_pi05 else ["state_proj", "action_time_mlp_in", "action_time_mlp_out"]
    )
    layer_norms = [f"{_BLOCK}/LayerNorm_0", f"{_BLOCK}/LayerNorm_1", f"{_IMG}/Transformer/encoder_norm"]
    paths = {f"{_IMG}/pos_embedding", f"{_LLM}/embedder/input_embedding"}
    for ending in ("", "_1"):
        paths |= {f"{_LLM}/layers/attn/{part}_einsum{ending}/w" for part in ("q", "kv", "attn_vec")}
        paths |= {f"{_LLM}/layers/mlp{ending}/{part}" for part in ("gating_einsum", "linear")}
    paths |= {f"{norm}/scale" for norm in _EXPERT_NORMS}
    if is_pi05:
        linears += [f"{norm}_1/Dense_0" for norm in _EXPERT_NORMS]
    else:
        paths |= {f"{norm}_1/scale" for norm in _EXPERT_NORMS}
    paths |= {f"{linear}/{kind}" for linear in linears for kind in ("kernel", "bias")}
    return paths | {f"{norm}/{kind}" for norm in layer_norms for kind in ("scale", "bias")}


def _jax_leaves(tree: Mapping[str, Any]) -> State:
    """The leaves of a whole π0 or π0.5 tree as tensors, without the wrapping ``params`` and ``value``."""
    paths = {path: path.split("/") for path in tree}
    if all(keys[0] == "params" for keys in paths.values()):
        paths = {path: keys[1:] for path, keys in paths.items()}
    if all(keys[-1] == "value" for keys in paths.values()):
        paths = {path: keys[:-1] for path, keys in paths.items()}
    arrays = {"/".join(keys): tree[path] for path, keys in paths.items()}
    lora = sorted(path for path in arrays if "lora" in path)
    if lora:
        raise CheckpointError(f"The checkpoint has LoRA factors ({_shorten(lora, 3)}); merge them into it first.")
    expected = _jax_paths(is_pi05="time_mlp_in/kernel" in arrays)
    problems = {"missing": sorted(expected - set(arrays)), "unexpected": sorted(set(arrays) - expected)}
    _raise_problems(problems, "The JAX tree is not a π0 or π0.5 model")
    return {path: _tensor(array) for path, array in arrays.items()}


def _tensor(array: Any) -> Tensor:
    """A tensor or a numpy array, numpy's bfloat16 extension included, as a tensor."""
    if isinstance(array, Tensor):
        return array
    if array.dtype.name == "bfloat16":
        return torch.tensor(array.view("uint16")).view(torch.bfloat16)
    return torch.tensor(array)


def _vision_from_jax(leaves: State) -> State:
    kernels = [leaves[f"{_VISION_ATTENTION}/{part}/kernel"].flatten(2).mT for part in ("query", "key", "value")]
    biases = [leaves[f"{_VISION_ATTENTION}/{part}/bias"].flatten(1) for part in ("query", "key", "value")]
    stacked = {
        "qkv.weight": torch.cat(kernels, dim=1),
        "qkv.bias": torch.cat(biases, dim=1),
        "out.weight": leaves[f"{_VISION_ATTENTION}/out/kernel"].flatten(1, 2).mT,
        "out.bias": leaves[f"{_VISION_ATTENTION}/out/bias"],
    }
    for index in (0, 1):
        stacked[f"norm{index + 1}.weight"] = leaves[f"{_BLOCK}/LayerNorm_{index}/scale"]
        stacked[f"norm{index + 1}.bias"] = leaves[f"{_BLOCK}/LayerNorm_{index}/bias"]
        stacked[f"fc{index + 1}.weight"] = leaves[f"{_BLOCK}/MlpBlock_0/Dense_{index}/kernel"].mT
        stacked[f"fc{index + 1}.bias"] = leaves[f"{_BLOCK}/MlpBlock_0/Dense_{index}/bias"]
    return {
        "vision.stem.weight": leaves[f"{_IMG}/embedding/kernel"].permute(3, 2, 0, 1),
        "vision.stem.bias": leaves[f"{_IMG}/embedding/bias"],
        "vision.position": leaves[f"{_IMG}/pos_embedding"].flatten(0, 1),
        **_unstack("vision.blocks", stacked),
        "vision.norm.weight": leaves[f"{_IMG}/Transformer/encoder_norm/scale"],
        "vision.norm.bias": leaves[f"{_IMG}/Transformer/encoder_norm/bias"],
        "vision.head.weight": leaves[f"{_IMG}/head/kernel"].mT,
        "vision.head.bias": leaves[f"{_IMG}/head/bias"],
    }


def _expert_from_jax(leaves: State, expert: str, ending: str) -> State:
    layers = f"{_LLM}/layers"
    q = leaves[f"{layers}/attn/q_einsum{ending}/w"].mT.flatten(1, 2)  # [L, N, D, H] -> [L, N * H, D]
    kv = leaves[f"{layers}/attn/kv_einsum{ending}/w"].mT.flatten(2, 3)  # [L, 2, K, D, H] -> [L, 2, K * H, D]
    gating = leaves[f"{layers}/mlp{ending}/gating_einsum"].mT  # [L, 2, D, M] -> [L, 2, M, D]
    stacked = {
        "qkv.weight": torch.cat([q, kv[:, 0], kv[:, 1]], dim=1),
        "out.weight": leaves[f"{layers}/attn/attn_vec_einsum{ending}/w"].flatten(1, 2).mT,
        "gate_up.weight": gating.flatten(1, 2),
        "down.weight": leaves[f"{layers}/mlp{ending}/linear"].mT,
        **_norm_from_jax(leaves, f"{layers}/pre_attention_norm{ending}", "norm1"),
        **_norm_from_jax(leaves, f"{layers}/pre_ffw_norm{ending}", "norm2"),
    }
    final = _norm_from_jax(leaves, f"{_LLM}/final_norm{ending}", f"{expert}_norm")
    return {**_unstack(f"{expert}_layers", stacked), **final}


def _norm_from_jax(leaves: State, path: str, name: str) -> State:
    if f"{path}/Dense_0/kernel" not in leaves:
        return {f"{name}.scale": leaves[f"{path}/scale"]}
    return {
        f"{name}.modulation.weight": leaves[f"{path}/Dense_0/kernel"].mT,
        f"{name}.modulation.bias": leaves[f"{path}/Dense_0/bias"],
    }


def _unstack(prefix: str, stacked: Mapping[str, Tensor]) -> State:
    """Tensors with a leading layer axis as one tensor per layer."""
    return {
        f"{prefix}.{index}.{name}": layer
        for name, tensor in stacked.items()
        for index, layer in enumerate(tensor.unbind(0))
    }


def _require_match(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    shapes = (
        f"{name} {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in sorted(set(state) & set(expected))
        if state[name].shape != expected[name].shape
    )
    problems = {
        "missing": sorted(set(expected) - set(state)),
        "unexpected": sorted(set(state) - set(expected)),
        "wrong shape": list(shapes),
    }
    _raise_problems(problems, f"{source} does not fit the model")


def _raise_problems(problems: Mapping[str, list[str]], summary: str) -> None:
    found = [f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{summary}; {'; '.join(found)}.")


def _shorten(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
