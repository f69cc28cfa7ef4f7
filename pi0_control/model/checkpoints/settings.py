"""What the config.json of a public checkpoint tells of the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi0_control.errors import CheckpointError
from pi0_control.files import read_json
from pi0_control.model.checkpoints.sizes import SizesOf

SETTINGS_FILE = "config.json"
LONGEST = 10_000  # actions or tokens; more is a damaged file


def read_settings(directory: Path) -> Mapping[str, Any]:
    """The content of config.json; empty without one.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    path = directory / SETTINGS_FILE
    return read_object(path) if path.is_file() else {}


def read_object(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: no such file, not JSON, or something else.
    """
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} has a {type(content).__name__}; expected an object.")
    return content


def apply_openpi(settings: Mapping[str, Any], sizes: SizesOf, path: Path) -> None:
    """openpi's config.json tells the horizon."""
    sizes.tell(**_whole_numbers(settings, {"action_horizon": "action_horizon"}, path))


def apply_lerobot(settings: Mapping[str, Any], sizes: SizesOf, path: Path) -> None:
    """LeRobot's config.json tells the family, horizon, token length and cameras.

    Raises:
        CheckpointError: another kind of policy, another family than the tensors are of, or values of wrong types.
    """
    family = settings.get("type", sizes.family)
    if family not in ("pi0", "pi05"):
        raise CheckpointError(f"{path} is of a policy of type {family!r}; expected 'pi0' or 'pi05'.")
    if family != sizes.family:
        raise CheckpointError(f"{path} says {family!r} and the tensors beside it are of {sizes.family!r}.")
    known = {"chunk_size": "action_horizon", "tokenizer_max_length": "max_token_len"}
    sizes.tell(**_whole_numbers(settings, known, path))
    features = settings.get("input_features") or {}
    if not isinstance(features, Mapping):
        raise CheckpointError(f"{path} has input_features {features!r:.80}; expected an object.")
    cameras = [name for name, feature in features.items() if isinstance(feature, Mapping) and _is_image(feature)]
    if cameras:
        empty = _whole_numbers(settings, {"empty_cameras": "empty"}, path, least=0).get("empty", 0)
        listed = sum("empty_camera" in name for name in cameras)
        sizes.tell(num_cameras=len(cameras) + max(0, empty - listed))


def _is_image(feature: Mapping[str, Any]) -> bool:
    return feature.get("type") == "VISUAL"


def _whole_numbers(settings: Mapping[str, Any], names: Mapping[str, str], path: Path, least: int = 1) -> dict[str, int]:
    """Settings that are there and not null under our names."""
    found = {}
    for theirs, ours in names.items():
        value = settings.get(theirs)
        if value is None:
            continue
        if type(value) is not int or not least <= value <= LONGEST:
            raise CheckpointError(f"{path} has {theirs} {value!r:.80}; expected a whole number, {least} to {LONGEST}.")
        found[ours] = value
    return found
