"""What a LeRobot policy directory tells besides its weights: config.json, the processors and their statistics.

Processors say how the policy was trained where there are any; config.json says the same less exactly. Which file has a
processor's statistics is read from it, never guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import CheckpointError, ConfigError, RobotMismatchError
from pi0_control.model.checkpoints import Checkpoint
from pi0_control.model.checkpoints.safetensors_file import SafetensorsFile
from pi0_control.model.checkpoints.settings import read_object
from pi0_control.model.times import MAX_PERIOD, MIN_PERIOD
from pi0_control.policy.camera_stats import CameraStats
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.norm_stats import LEROBOT_EPS, LEROBOT_FEATURES, NormStats

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
NORMS = {"MEAN_STD": "z_score", "QUANTILES": "quantile", "MIN_MAX": "min_max"}
PROMPTS = {"pi0": "lerobot_pi0", "pi05": "pi05"}
LONGEST_NAME = 255  # of any file
MEMORIES = ("use_visual_memory", "use_proprioceptive_memory")
SAME_NAMES = {
    "num_steps": "num_steps",  # up to 0.3
    "num_inference_steps": "num_steps",
    "n_action_steps": "execution_horizon",
    "rtc_training_max_delay": "rtc_max_delay",
}
PERIODS = {"min_period": MIN_PERIOD, "max_period": MAX_PERIOD}


def lerobot_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Settings (see :mod:`pi0_control.policy.settings`) that the directory tells.

    Raises:
        CheckpointError: its files are damaged, or ask for what is not there.
    """
    config, steps = checkpoint.settings, _steps(checkpoint.directory / PREPROCESSOR)
    for name in MEMORIES:
        if config.get(name):
            raise CheckpointError(f"{checkpoint.directory} was trained with {name}, which is not available.")
    for name, period in PERIODS.items():
        if config.get(name) not in (None, period):
            raise CheckpointError(f"{checkpoint.directory} has {name} {config[name]!r}; expected {period}.")
    normalizer = steps.get("normalizer_processor", {})
    normalized = normalizer.get("normalize_observation_keys")
    if normalized is not None and not (isinstance(normalized, list) and LEROBOT_FEATURES[0] in normalized):
        raise CheckpointError(
            f"{checkpoint.directory} normalises {normalized} of the observation; expected {LEROBOT_FEATURES[0]}."
        )
    renamed = _object(steps.get("rename_observations_processor", {}).get("rename_map"))
    settings: dict[str, Any] = {
        "cameras": _cameras(config, renamed),
        "norm": _norm(normalizer.get("norm_map") or config.get("normalization_mapping"), checkpoint.directory),
        "norm_rule": "lerobot",
        "norm_eps": normalizer.get("eps", LEROBOT_EPS),
        "prompt_format": PROMPTS["pi05" if checkpoint.config.state_input == "none" else "pi0"],
        "units": "lerobot_aloha_pi" if config.get("adapt_to_pi_aloha") else "robot",
        **_version(config),
        **_actions(config, steps.get("relative_actions_processor"), checkpoint.config.action_dim),
    }
    settings |= {ours: config[theirs] for theirs, ours in SAME_NAMES.items() if config.get(theirs) is not None}
    return settings


def lerobot_stats(checkpoint: Checkpoint) -> NormStats | None:
    """The statistics of its processors, or those that LeRobot up to 0.3 kept among the weights; None without any.

    The latter are infinite where it never saw values.

    Raises:
        CheckpointError: they are incomplete or damaged.
    """
    arrays = _statistics(checkpoint, LEROBOT_FEATURES)
    for name, tensor in checkpoint.extras.items():  # normalize_inputs.buffer_observation_state.mean
        for feature in LEROBOT_FEATURES:
            buffer, _, statistic = name.rpartition(".")
            if buffer.endswith(f".buffer_{feature.replace('.', '_')}") and not tensor.isinf().all():
                arrays.setdefault(f"{feature}.{statistic}", tensor.double().numpy())
    return NormStats.from_lerobot(arrays, str(checkpoint.directory)) if arrays else None


def lerobot_camera_stats(checkpoint: Checkpoint, policy: PolicyConfig) -> dict[str, CameraStats]:
    """What the robot's cameras showed in training, as far as the statistics of images tell.

    Raises:
        CheckpointError: the statistics are damaged.
    """
    features, found = _object(checkpoint.settings.get("input_features")), {}
    arrays = _statistics(checkpoint, tuple(features))
    for feature, described in features.items():
        camera, shape = policy.cameras.get(_short(feature)), _object(described).get("shape")
        mean = arrays.get(f"{feature}.mean", np.zeros(0)).ravel()
        if camera is None or len(mean) != 3 or not ((mean >= 0) & (mean <= 1)).all():
            continue
        if isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape):
            found[camera] = CameraStats(shape[1], shape[2], (float(mean[0]), float(mean[1]), float(mean[2])))
    return found


def check_places(policy: PolicyConfig) -> None:
    """LeRobot takes each relative action from the entry of the state at its own place, whatever joint that is.

    Raises:
        ConfigError: here it would be another joint, as one without an action comes before.
    """
    if any(policy.delta_mask[joint] and joint != place for place, joint in enumerate(policy.commanded)):
        raise ConfigError(
            f"LeRobot would take actions relative to the wrong joints: {list(policy.uncommanded)} have no action and "
            f"come before relative ones of {list(policy.robot.joint_names)}."
        )


def check_features(checkpoint: Checkpoint, policy: PolicyConfig) -> None:
    """Refuse a robot whose state or action has another length than the policy was trained with.

    Raises:
        RobotMismatchError: one of them differs, or the actions are of the same joints in another order.
        ConfigError: see :func:`check_places`.
    """
    config, robot = checkpoint.settings, policy.robot
    ours = [robot.joint_names[index] for index in policy.commanded]
    theirs = [str(name).removesuffix(".pos") for name in _action_names(checkpoint)]
    if theirs != ours and sorted(theirs) == sorted(ours):
        raise RobotMismatchError(
            f"{checkpoint.directory} has actions in the order {theirs}; robot {robot.name!r} has {ours}. List the "
            "robot's joints in the order of the actions."
        )
    if lerobot_settings(checkpoint).get("action_space") == "joint_delta":
        check_places(policy)
    for group, feature, expected, keyword in (
        ("input_features", LEROBOT_FEATURES[0], len(robot.joints), "max_state_dim"),
        ("output_features", LEROBOT_FEATURES[1], len(policy.commanded), "max_action_dim"),
    ):
        shape = _object(_object(config.get(group)).get(feature)).get("shape")
        if shape is not None and shape not in ([expected], [config.get(keyword)]):  # base models have all they can
            raise RobotMismatchError(
                f"{checkpoint.directory} has {feature} of shape {shape}; robot {robot.name!r} has {expected}: "
                f"{ours} have actions of {list(robot.joint_names)}. Name joints without an action in 'uncommanded'."
            )


def _statistics(checkpoint: Checkpoint, features: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
    """What the processors keep of some features, by ``<feature>.<statistic>``."""
    directory = checkpoint.directory
    arrays: dict[str, NDArray[np.float64]] = {}
    for file, name in ((PREPROCESSOR, "normalizer_processor"), (POSTPROCESSOR, "unnormalizer_processor")):
        state_file = _steps(directory / file, "state_file").get(name)
        if state_file is None:
            continue
        if not isinstance(state_file, str) or Path(state_file).name != state_file or len(state_file) > LONGEST_NAME:
            raise CheckpointError(f"{directory / file} has state_file {state_file!r}; expected a name beside it.")
        tensors = SafetensorsFile(directory / state_file)
        names = [each for each in tensors.shapes if each.startswith(features)]
        arrays |= {each: tensors.read(each).double().numpy() for each in names}
    return arrays


def _steps(path: Path, what: str = "config") -> dict[str, Any]:
    """An entry of each step of a processor by the step's name; nothing without the file."""
    if not path.is_file():
        return {}
    steps = read_object(path).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise CheckpointError(f"{path} has no list of steps.")
    found = {str(step.get("registry_name")): step.get(what) for step in steps}
    return {name: _object(entry) if what == "config" else entry for name, entry in found.items()}


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _cameras(config: Mapping[str, Any], renamed: Mapping[str, Any]) -> dict[str, str | None] | None:
    """What each image slot is named after, in the order of the prefix; empty ones are None, as is all of a base model.

    LeRobot 0.3 wrote base models, which were openpi's, without any features.
    """
    origins = {str(after): str(before) for before, after in renamed.items()}
    features = _object(config.get("input_features"))
    images = [name for name, each in features.items() if _object(each).get("type") == "VISUAL"]
    if not images:
        return None
    slots = {_short(name): _short(origins.get(name, name)) for name in images}
    return {slot: None if slot.startswith("empty_camera") else name for slot, name in slots.items()}


def _short(feature: str) -> str:
    """``top`` for observation.images.top."""
    return feature.removeprefix("observation.").removeprefix("images.")


def _norm(mapping: Any, directory: Path) -> str:
    """The one normalisation of state and action."""
    modes = {name: str(_object(mapping).get(name)) for name in ("STATE", "ACTION")}
    if len({*modes.values()}) > 1 or modes["STATE"] not in NORMS:
        raise CheckpointError(f"{directory} normalises {modes}; expected one of {[*NORMS]} for both.")
    if _object(mapping).get("VISUAL", "IDENTITY") != "IDENTITY":
        raise CheckpointError(f"{directory} normalises images by {mapping['VISUAL']}; expected IDENTITY.")
    return NORMS[modes["STATE"]]


def _version(config: Mapping[str, Any]) -> dict[str, Any]:
    """How images are resized, where the entries of config.json tell the version; 0.4 and 0.5.0 look alike."""
    if "resize_imgs_with_padding" in config:
        return {"resize": "lerobot_v03"}
    return {"resize": "lerobot_v05"} if "use_relative_actions" in config else {}


def _action_names(checkpoint: Checkpoint) -> list[Any]:
    """What the actions are called, in their order; empty where nothing tells."""
    step = _steps(checkpoint.directory / PREPROCESSOR).get("relative_actions_processor", {})
    names = step.get("action_names") or checkpoint.settings.get("action_feature_names")
    return names if isinstance(names, list) else []


def _actions(config: Mapping[str, Any], step: Mapping[str, Any] | None, action_dim: int) -> dict[str, Any]:
    """Which of ``action_dim`` are relative to the state: all but those whose name holds an excluded word."""
    is_relative = config.get("use_relative_actions", False) if step is None else step.get("enabled", False)
    if not is_relative:
        return {"action_space": "joint_absolute"}
    source, ours = (config, "action_feature_names") if step is None else (step, "action_names")
    words, names = source.get("relative_exclude_joints" if step is None else "exclude_joints"), source.get(ours)
    if not isinstance(names, list):
        return {"delta_mask": [True] * action_dim, "action_space": "joint_delta"}
    words = [str(word).lower() for word in words if word] if isinstance(words, list) else []
    mask = [not any(word in str(name).lower() for word in words) for name in names]
    return {"delta_mask": mask + [True] * (action_dim - len(mask)), "action_space": "joint_delta"}
