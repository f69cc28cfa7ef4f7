"""What no tensor of a public checkpoint tells, and the PolicyConfig it makes.

Settings are the entries of ``policy.json``, each of which may be missing; those of ``model`` too. They come from a file
or a bundled preset, from a ``policy.json`` beside the checkpoint, and from the checkpoint's own files, in this order.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.files import read_json
from pi0_control.model.checkpoints import Checkpoint
from pi0_control.model.checkpoints.sizes import UNTOLD
from pi0_control.model.config import Pi0Config
from pi0_control.policy.config import CAMERA_SLOTS, FORMAT_VERSION, PolicyConfig
from pi0_control.robot import RobotSpec

PRESETS_FILE = Path(__file__).with_name("presets.yaml")
EXTRA_KEYS = ("asset", "usual_asset", "preset")  # that policy.json does not have
UNKNOWN = {
    "robot": "what it drives: the name of a bundled robot or a robot file",
    "model.action_horizon": "the number of actions in a chunk",
    "cameras": "the robot's camera for each image slot of the model",
    "action_space": "joint_delta, or joint_absolute where the model predicts what the robot takes",
    "discrete_state_input": "true where the prompt holds the state",
    "resize": "lerobot_v05, or lerobot_v04 where LeRobot 0.4 trained it",
}
Settings = dict[str, Any]


def presets() -> dict[str, Settings]:
    """The bundled settings, by the name of openpi's configuration."""
    return dict(yaml.safe_load(PRESETS_FILE.read_text(encoding="utf-8")))


def read_settings(given: str | Path | Mapping[str, Any] | None) -> Settings:
    """The settings of a file (YAML or JSON) or a bundled preset; its entry ``preset`` names one to begin with.

    Raises:
        CheckpointError: no such file or preset, or it does not hold settings.
        ConfigError: settings that do not exist.
    """
    if given is None:
        return {}
    bundled = presets()
    if isinstance(given, Mapping):
        values, source = given, "The settings"
    elif str(given) in bundled:
        values, source = bundled[str(given)], f"Preset {given}"
    else:
        values, source = _read_file(Path(given), sorted(bundled)), str(given)
    known = [*(item.name for item in fields(PolicyConfig)), *EXTRA_KEYS]
    if not isinstance(values, Mapping) or not {*values} <= {*known}:
        got = sorted(map(str, {*values} - {*known})) if isinstance(values, Mapping) else type(values).__name__
        raise ConfigError(f"{source} has {got}; expected some of {known}.")
    if not isinstance(values.get("model", {}), Mapping) or values.get("format_version", 1) != FORMAT_VERSION:
        raise ConfigError(f"{source} has a model that is no object, or another format_version than {FORMAT_VERSION}.")
    base = values.get("preset")
    if base is not None and base not in [*bundled]:
        raise ConfigError(f"{source} begins with preset {base!r}; expected one of {sorted(bundled)}.")
    return merge(bundled[base] if base else {}, values)


def merge(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> Settings:
    """All of the one, and what the other has besides."""
    model = {**weaker.get("model", {}), **stronger.get("model", {})}
    return {**weaker, **stronger, "model": model}


def build_config(
    settings: Mapping[str, Any], files: Mapping[str, Any], checkpoint: Checkpoint, robot: RobotSpec | None
) -> PolicyConfig:
    """The configuration of a public checkpoint.

    Args:
        settings: given by the user.
        files: what the checkpoint's own files tell.
        checkpoint: its sizes.
        robot: what is driven, where no settings name it.

    Raises:
        ConfigError: something remains unknown (all of it is listed), or settings do not fit together or the sizes.
        CheckpointError: the files do not fit together.
    """
    try:
        return _build(settings, files, checkpoint, robot)
    except (OSError, TypeError, ValueError) as error:  # nested values of a wrong type, names that no file can have
        raise ConfigError(f"The settings for {checkpoint.directory} do not fit: {error}.") from error


def _build(
    settings: Mapping[str, Any], files: Mapping[str, Any], checkpoint: Checkpoint, driven: RobotSpec | None
) -> PolicyConfig:
    values = merge(files, settings)
    model = _model(values["model"], checkpoint)
    if "discrete_state_input" in settings and "prompt_format" not in settings:
        values.pop("prompt_format", None)  # follows
    robot = values["robot"] = _robot(values.get("robot"), driven)
    cameras = values["cameras"] = _cameras(settings.get("cameras"), files.get("cameras"), robot)
    _derive(values, is_pi05=checkpoint.config.state_input == "none")
    horizon_is_open = "action_horizon" in checkpoint.assumed and "action_horizon" not in values["model"]
    unknown = [
        f"{name} ({what})"
        for name, what in UNKNOWN.items()
        if (horizon_is_open if name == "model.action_horizon" else values.get(name) is None)
    ]
    if unknown or robot is None or cameras is None:
        raise ConfigError(
            f"The checkpoint {checkpoint.directory} does not tell {', '.join(unknown)}; say it in a policy.json beside "
            f"it or in a policy config, a file with these entries or one of the presets {sorted(presets())}."
        )
    model = replace(model, num_cameras=len(cameras))
    rest = {name: value for name, value in values.items() if name not in ("model", "robot", "cameras", *EXTRA_KEYS)}
    usual = {name: tuple(values[name]) for name in ("rates", "uncommanded", "delta_mask") if name in values}
    plain = PolicyConfig.for_robot(robot, model, values["action_space"], cameras=cameras, **usual)
    return PolicyConfig.from_dict({**plain.to_dict(), **rest})


def _read_file(path: Path, bundled: list[str]) -> Any:
    if not path.is_file():
        raise CheckpointError(f"No policy config {str(path)!r}; give a YAML or JSON file or one of {bundled}.")
    if path.suffix == ".json":
        return read_json(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is not YAML: {str(error).splitlines()[0]}.") from error


def _robot(given: Any, driven: RobotSpec | None) -> RobotSpec | None:
    if given is None:
        return driven
    if isinstance(given, RobotSpec):
        return given
    return RobotSpec.from_yaml(given) if isinstance(given, str) else RobotSpec.from_dict(given, "The settings' robot")


def _cameras(given: Any, slots: Mapping[str, str | None] | None, robot: RobotSpec | None) -> Settings | None:
    """The robot's camera by slot, in the order of the prefix; None where it is unknown.

    Args:
        given: cameras by slot; slots without one are masked, so they are left out.
        slots: those of the checkpoint, each with the camera it is named after; openpi's if None.
        robot: has the cameras.
    """
    order = list(CAMERA_SLOTS if slots is None else slots)
    if given is not None:
        seen = [slot for slot in given if given[slot] is not None] if isinstance(given, Mapping) else []
        if not seen or (slots is not None and not {*seen} <= {*slots}):
            raise ConfigError(f"cameras is {given!r}; expected the robot's camera for some of {order}.")
        return {slot: given[slot] for slot in sorted(seen, key=lambda slot: [*order, slot].index(slot))}
    if robot is None:
        return None
    if slots is None:  # openpi's: known where the robot's cameras are called like them
        slots = {name: name for name in CAMERA_SLOTS if name in robot.cameras} if {*robot.cameras} <= {*order} else {}
    named = {slot: name for slot, name in slots.items() if name is not None}
    return named if named and {*named.values()} <= {*robot.cameras} else None


def _derive(values: Settings, is_pi05: bool) -> None:
    """Settings that follow from others."""
    robot, mask, uncommanded = values["robot"], values.get("delta_mask"), values.get("uncommanded") or []
    if robot is not None and isinstance(mask, list) and len(mask) != len(robot.joints):  # one per action
        entries = iter(mask)
        values["delta_mask"] = [name not in uncommanded and next(entries, None) for name in robot.joint_names]
    if mask is not None and "action_space" not in values:
        values["action_space"] = "joint_delta" if any(mask) else "joint_absolute"
    if "discrete_state_input" in values:
        values.setdefault("prompt_format", "pi05" if values["discrete_state_input"] else "pi0")
    elif "prompt_format" in values or not is_pi05:
        values.setdefault("prompt_format", "pi0")
        values["discrete_state_input"] = values["prompt_format"] == "pi05"
    if values.get("resize") == "lerobot_v04" and values.get("discrete_state_input"):
        values.setdefault("pad_state_in_prompt", True)  # only LeRobot 0.4 did both


def _model(given: Mapping[str, Any], checkpoint: Checkpoint) -> Pi0Config:
    """The checkpoint's model, with what changes no tensor as the settings have it."""
    config = checkpoint.config
    told = {item.name: getattr(config, item.name) for item in fields(config)}
    told["vision"] = config.to_dict()["vision"]
    free = {*checkpoint.assumed, *UNTOLD, "attn_backend"}
    for name, value in given.items():
        if name not in told or (name not in free and value != told[name]):
            raise ConfigError(
                f"The settings have model.{name} {value!r}; the checkpoint {checkpoint.directory} has {told.get(name)}."
            )
    return replace(config, **{name: value for name, value in given.items() if name in free})
