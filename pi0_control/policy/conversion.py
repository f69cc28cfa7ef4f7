"""A policy or a public checkpoint written in another format: its weights, and what surrounds them."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pi0_control.errors import ConfigError
from pi0_control.files import write_folder
from pi0_control.model.checkpoints import (
    Checkpoint,
    LoadReport,
    open_checkpoint,
    openpi_settings,
    save_openpi,
    save_weights,
)
from pi0_control.policy.pretrained import (
    CONFIG_FILE,
    STATS_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    PolicyFiles,
    find_policy,
    read_policy,
)

Format = Literal["pi0_control", "openpi", "lerobot"]
DTYPES = {"keep": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_CARRIED = {
    "openpi": ("assets/**/*.json", CONFIG_FILE, STATS_FILE, "*.model"),
    "lerobot": ("*.json", "policy_*.safetensors", "*.model"),
}


def convert(
    source: str | Path,
    out: str | Path,
    to: Format = "pi0_control",
    dtype: str = "keep",
    lora_scaling: float = 1.0,
    **known: Any,
) -> LoadReport:
    """Write a policy in another format.

    A public checkpoint that stays with its own library keeps what surrounds its weights as it is; with openpi, where no
    file has settings, even if some are given. Everything else is read by :func:`read_policy` and written again.

    Args:
        source: a bundled policy, a directory of any format, or ``org/name`` on the Hugging Face hub.
        out: the directory to write; appears when it is whole.
        to: ``openpi`` is openpi's PyTorch format.
        dtype: of the matrices: as they are, ``float32`` or ``bfloat16``.
        lora_scaling: as for :func:`open_checkpoint`.
        known: what the files do not tell, as for :func:`read_policy`.

    Raises:
        ConfigError: ``out`` exists, openpi has no such model, or something remains unknown.
        CheckpointError: the source is missing, damaged or partial.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} is there already; expected the name of a new directory.")
    if dtype not in DTYPES:
        raise ConfigError(f"No dtype {dtype!r}; available: {list(DTYPES)}.")
    checkpoint = open_checkpoint(find_policy(source), lora_scaling=lora_scaling)
    stays = checkpoint.format.startswith(to) and to != "pi0_control" and not checkpoint.extras
    files = None if stays and not any(known.values()) else read_policy(source, **known)
    state = checkpoint.state(DTYPES[dtype])
    write_folder(out, lambda partial: _write(partial, to, checkpoint, state, files))
    return checkpoint.report_on(state)


def _write(
    folder: Path, to: Format, checkpoint: Checkpoint, state: dict[str, Tensor], files: PolicyFiles | None
) -> None:
    if to == "pi0_control":
        save_weights(state, folder / WEIGHTS_FILE)
    else:
        config, assumed = (checkpoint.config, checkpoint.assumed) if files is None else (files.config.model, ())
        save_openpi(state, config, folder / WEIGHTS_FILE, "model." if to == "lerobot" else "", assumed)
        if to == "openpi":
            precision = str(state["embedding.weight"].dtype).removeprefix("torch.")
            settings = json.dumps(openpi_settings(config, precision, assumed), indent=2)
            (folder / "config.json").write_text(settings + "\n", encoding="utf-8")
    if files is None or (to == "openpi" and checkpoint.format.startswith(to)):
        _carry_over(checkpoint.directory, folder, _CARRIED[to])
        if files is not None and files.tokenizer is not None and files.tokenizer.parent != checkpoint.directory:
            shutil.copyfile(files.tokenizer, folder / TOKENIZER_FILE)
    elif to == "pi0_control":
        files.save(folder)
    else:
        files.export(folder, to)


def _carry_over(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files of some patterns that are there; links inside a cache of the hub become files."""
    for path in (path for pattern in patterns for path in source.glob(pattern) if path.is_file()):
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
