"""Weights to disk: our own names, or openpi's with which LeRobot reads them too."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pi0_control.errors import ConfigError
from pi0_control.model.checkpoints.checkpoint import MODEL_ENTRY
from pi0_control.model.checkpoints.moves import Move, carry_out, require_fit
from pi0_control.model.checkpoints.safetensors_file import SafetensorsFile
from pi0_control.model.checkpoints.torch_names import EMBEDDING, EXPERT_HEAD, TIED_HEAD, is_public, torch_moves
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0


def save_weights(model: Pi0 | Mapping[str, Tensor], path: str | Path) -> None:
    """Write the weights of a model, or its state, to a safetensors file under our names."""
    state = model.state_dict() if isinstance(model, Pi0) else model
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(model: Pi0, path: str | Path) -> None:
    """Read what :func:`save_weights` wrote into the model, cast to the model's dtypes.

    Raises:
        CheckpointError: no such file, not a whole safetensors file, or names and shapes that are not the model's.
    """
    file, state = SafetensorsFile(path), model.state_dict()
    moves = [Move(name, (name,)) for name in state]
    require_fit(moves, file, {name: tensor.shape for name, tensor in state.items()}, f"{path} does not fit the model")
    carry_out(moves, file, state)


def openpi_tensors(state: Mapping[str, Tensor], config: Pi0Config) -> dict[str, Tensor]:
    """Views of a model's weights under openpi's names; the tied embedding is ``lm_head``, as in released files.

    Raises:
        ConfigError: openpi has no model of this architecture.
    """
    if not is_public(config):
        raise ConfigError(
            f"openpi and LeRobot have no model with stem {config.vision.stem!r}, state_input {config.state_input!r}, "
            f"ada_norm {config.ada_norm!r} and switches {list(config.changed_switches)}; expected those of π0 or π0.5."
        )
    return {move.source: state[move.targets[0]][slice(*move.rows)] for move in torch_moves(config)}


def save_openpi(
    state: Mapping[str, Tensor],
    config: Pi0Config,
    path: str | Path,
    prefix: str = "",
    assumed: Sequence[str] = (),
) -> None:
    """Write weights to a safetensors file that openpi loads, or LeRobot with the prefix ``model.``.

    It has what those ask for: the tied embedding under the name that safetensors keeps, and the unused output head of
    the action expert, as zeros. The header has the whole model config, which :func:`open_checkpoint` reads again, and
    which of its fields are ``assumed``.

    Raises:
        ConfigError: openpi has no model of this architecture.
    """
    tensors = openpi_tensors(state, config)
    tensors[EXPERT_HEAD] = tensors[TIED_HEAD].new_zeros(config.vocab_size, config.action_width)
    tied = {prefix + EMBEDDING: prefix + TIED_HEAD}
    entry = json.dumps({"model": config.to_dict(), "assumed": list(assumed)})
    metadata = {"format": "pt", MODEL_ENTRY: entry, **tied}
    save_file({prefix + name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, metadata)


def openpi_settings(config: Pi0Config, precision: str, assumed: Sequence[str] = ()) -> dict[str, Any]:
    """The content of openpi's config.json; sizes that openpi has no name for are ``custom``."""
    experts = [
        (config.prefix_width, config.prefix_mlp_dim),
        (config.action_width, config.action_mlp_dim),
    ]
    heads = (config.depth, config.num_heads, config.num_kv_heads, config.head_dim)
    variants = [_VARIANTS.get((*sizes, *heads), "custom") for sizes in experts]
    horizon = {} if "action_horizon" in assumed else {"action_horizon": config.action_horizon}
    names = {"paligemma_variant": variants[0], "action_expert_variant": variants[1], "precision": precision}
    return {"action_dim": config.action_dim, **horizon, **names}


_VARIANTS = {  # width, width of the feed-forward layer, depth, heads, key-value heads, width of a head
    (2048, 16384, 18, 8, 1, 256): "gemma_2b",
    (1024, 4096, 18, 8, 1, 256): "gemma_300m",
    (64, 128, 4, 8, 1, 16): "dummy",
}
