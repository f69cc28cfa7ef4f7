"""Checkpoints by their names on the Hugging Face hub."""

import importlib
import re
from pathlib import Path

from pi0_control.errors import CheckpointError, ConfigError

FILES = ("*.safetensors", "*.json", "*.model")  # the last are tokenizers; neither pickles nor code


def locate(name: str | Path) -> Path:
    """A directory as it is, or a hub id ``org/name`` as a directory of the local cache, fetched where it is not yet.

    Raises:
        ConfigError: huggingface_hub is not installed.
        CheckpointError: no such directory, and no such repository, or the hub cannot be reached.
    """
    path = Path(name)
    if path.is_dir() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):
        return path
    try:
        hub = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"There is no directory {name}; to fetch it from the Hugging Face hub, pip install 'pi0-control[hub]'."
        ) from error
    try:
        return Path(hub.snapshot_download(str(name), allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # all errors of the network and of the hub are the former
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"There is no directory {name}, and it cannot be fetched from the Hugging Face hub: {reason}"
        ) from error
