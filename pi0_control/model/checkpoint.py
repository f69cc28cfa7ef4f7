"""Weights on disk: our own strict safetensors, and openpi's PyTorch and JAX names mapped to ours. Nothing is unpickled.

Our names, with layers counted by {i}: ``vision.{stem,position,blocks.{i},norm,head}``, ``embedding``,
``prefix_layers.{i}`` and ``suffix_layers.{i}`` with ``norm1, qkv, out, norm2, gate_up, down``, ``prefix_norm``,
``suffix_norm`` and the projections as openpi calls them. Queries, keys and values are one matrix, gate and up another.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pi0_control.errors import CheckpointError
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
    found = [f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{source} does not fit the model; {'; '.join(found)}.")


def _shorten(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
