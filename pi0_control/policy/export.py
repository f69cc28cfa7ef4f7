"""What surrounds the weights of a policy in directories of openpi and of LeRobot (0.5.1 and newer)."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.numpy import save_file

from pi0_control.errors import ConfigError
from pi0_control.policy.lerobot import NORMS, PREPROCESSOR, check_places
from pi0_control.policy.norm_stats import LEROBOT_FEATURES, NormStats, VectorStats

if TYPE_CHECKING:
    from pi0_control.policy.config import PolicyConfig
    from pi0_control.policy.pretrained import PolicyFiles

TOKENIZER_NAME = "google/paligemma-3b-pt-224"
IMAGES = "observation.images."
_CENTRED = ("pad_antialias", "lerobot_v05")  # one fits images as the other but for antialiasing
_POSSIBLE: dict[str, dict[str, tuple[Any, ...]]] = {
    "openpi": {
        "norm": ("z_score", "quantile"),
        "pad_state_in_prompt": (False,),
        "resize": _CENTRED,
        "rtc_max_delay": (0,),
        "units": ("robot", "aloha_pi"),
    },
    "lerobot": {"pad_state_in_prompt": (False,), "resize": _CENTRED, "units": ("robot",)},
}


def export(files: "PolicyFiles", directory: Path, to: Literal["openpi", "lerobot"]) -> None:
    """Write all but the weights; the tokenizer too, though neither library looks for it there.

    Raises:
        ConfigError: the other library cannot do what the policy needs; lists it.
    """
    config = files.config
    settings = {name: (getattr(config, name), values) for name, values in _POSSIBLE[to].items()}
    problems = {f"{name} {value!r}" for name, (value, values) in settings.items() if value not in values}
    if to == "lerobot" and config.discrete_state_input != (config.model.state_input == "none"):
        problems.add(f"discrete_state_input {config.discrete_state_input}")
    if to == "lerobot" and config.rtc_max_delay and config.model.state_input == "token":
        problems.add(f"rtc_max_delay {config.rtc_max_delay} for π0")
    if problems:
        raise ConfigError(f"{to} has no {', '.join(sorted(problems))}, which the policy needs.")
    (_export_openpi if to == "openpi" else _export_lerobot)(files, directory)
    if files.tokenizer is not None:
        shutil.copyfile(files.tokenizer, directory / "paligemma_tokenizer.model")


def _export_openpi(files: "PolicyFiles", directory: Path) -> None:
    """Statistics under the robot's name, if there are any; everything else is in openpi's own configurations."""
    if files.norm_stats is None:
        return
    assets = directory / "assets" / files.config.robot.name
    assets.mkdir(parents=True)
    parts = (files.norm_stats.state, files.norm_stats.actions)
    NormStats(*(VectorStats(each.mean, each.std, each.q01, each.q99) for each in parts)).save(
        assets / "norm_stats.json"
    )


def _export_lerobot(files: "PolicyFiles", directory: Path) -> None:
    config = files.config
    _write_json(directory / "config.json", _lerobot_config(config))
    processors = _processors(config)
    tensors = {} if files.norm_stats is None else files.norm_stats.to_lerobot()
    for name, steps in processors.items():
        for index, step in enumerate(steps):
            if tensors and step["registry_name"] in ("normalizer_processor", "unnormalizer_processor"):
                step["state_file"] = f"{name}_step_{index}_{step['registry_name']}.safetensors"
                save_file(tensors, directory / step["state_file"])
        _write_json(directory / f"{name}.json", {"name": name, "steps": steps})


def _lerobot_config(config: "PolicyConfig") -> dict[str, Any]:
    model = config.model
    inputs, outputs = _features(config)
    delay = {"rtc_training_max_delay": config.rtc_max_delay} if config.rtc_max_delay else {}  # 0.6.1 has no such entry
    return {
        "type": "pi05" if model.state_input == "none" else "pi0",
        "n_obs_steps": 1,
        "chunk_size": model.action_horizon,
        "n_action_steps": config.execution_horizon,
        "max_state_dim": model.action_dim,
        "max_action_dim": model.action_dim,
        "num_inference_steps": config.num_steps,
        "image_resolution": [model.vision.image_size] * 2,
        "tokenizer_max_length": model.max_token_len,
        "normalization_mapping": _norm_map(config),
        "input_features": inputs,
        "output_features": outputs,
        **dict(zip(_RELATIVE, _relative(config).values(), strict=True)),
        **delay,
    }


_RELATIVE = ("use_relative_actions", "relative_exclude_joints", "action_feature_names")


def _features(config: "PolicyConfig") -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot's input and output features; images are called like the robot's cameras, in the order of the slots."""
    size = config.model.vision.image_size
    sizes = {name: [3, stats.height, stats.width] for name, stats in config.camera_stats.items()}
    images = {
        IMAGES + name: {"type": "VISUAL", "shape": sizes.get(name, [3, size, size])}
        for name in config.cameras.values()
        if name is not None
    }
    state, action = LEROBOT_FEATURES
    inputs = {state: {"type": "STATE", "shape": [len(config.robot.joints)]}, **images}
    return inputs, {action: {"type": "ACTION", "shape": [len(config.commanded)]}}


def _norm_map(config: "PolicyConfig") -> dict[str, str]:
    mode = next(theirs for theirs, ours in NORMS.items() if ours == config.norm)
    return {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}


def _relative(config: "PolicyConfig") -> dict[str, Any]:
    """Which actions are relative, by the names of those that are not.

    Raises:
        ConfigError: no words tell them apart, or they are relative to other joints than LeRobot takes.
    """
    check_places(config)
    names = [config.robot.joint_names[index] for index in config.commanded]
    mask = [config.delta_mask[index] for index in config.commanded]
    absolute = [name for name, is_delta in zip(names, mask, strict=True) if not is_delta]
    excluded = [any(word.lower() in name.lower() for word in absolute) for name in names]
    if any(mask) and [not each for each in excluded] != mask:
        raise ConfigError(f"LeRobot cannot tell the absolute joints {absolute} from others of {names} by their names.")
    return {"enabled": any(mask), "exclude_joints": absolute if any(mask) else [], "action_names": names}


def _processors(config: "PolicyConfig") -> dict[str, list[dict[str, Any]]]:
    """The steps of both processors by name, in LeRobot's order."""
    inputs, outputs = _features(config)
    norm = {"eps": config.norm_eps, "features": {**inputs, **outputs}, "norm_map": _norm_map(config)}
    tokenizer = {"max_length": config.model.max_token_len, "task_key": "task", "padding_side": "right"}
    tokenizer |= {"padding": "max_length", "truncation": True, "tokenizer_name": TOKENIZER_NAME}
    normalizer, relative = _step("normalizer", norm), _step("relative_actions", _relative(config))
    prompt = [_step("tokenizer", tokenizer), _step("device", {"device": "cpu", "float_dtype": None})]
    before = [_step("rename_observations", {"rename_map": {}}), _step("to_batch", {})]  # LeRobot's programs fill it
    if config.prompt_format == "pi05":
        state = {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}}
        before += [relative, normalizer, state, *prompt]
    else:
        before += [{"registry_name": "pi0_new_line_processor", "config": {}}, *prompt, relative, normalizer]
    after = [
        _step("unnormalizer", {**norm, "features": outputs}),
        _step("absolute_actions", {"enabled": config.action_space == "joint_delta"}),
        _step("device", {"device": "cpu", "float_dtype": None}),
    ]
    return {PREPROCESSOR.removesuffix(".json"): before, "policy_postprocessor": after}


def _step(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"registry_name": f"{name}_processor", "config": dict(config)}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
