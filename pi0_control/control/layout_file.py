"""Layouts by name, and from YAML for environments and clients of your own.

::

    pictures:
      base_rgb: cam/front                                # a path with / between nested keys; null where there is none
      wrist_rgb: {key: cam/wrist, layout: chw, is_rotated: true}
    state:
      - {key: joints, joints: [shoulder_pan_joint, shoulder_lift_joint], scale: 0.0174533}   # degrees there
      - {key: gripper, joints: [gripper], conversion: inverted_gripper}
    action:
      - {joints: [shoulder_pan_joint, shoulder_lift_joint, gripper]}
    prompt_key: task
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from pi0_control.control.adapters import AxisAngle, DroidAction, aloha, droid, gym_aloha, libero, ur5
from pi0_control.control.mapping import INVERTED_GRIPPER, UNCHANGED, Affine, Conversion, Entries, Layout, Picture
from pi0_control.errors import ConfigError

LAYOUTS: dict[str, Callable[[], Layout]] = {
    "aloha": aloha,
    "droid": droid,
    "droid_joint_position": lambda: droid(control="joint_position"),
    "gym_aloha": gym_aloha,
    "libero": libero,
    "ur5": ur5,
}
CONVERSIONS: dict[str, Conversion] = {
    "axis_angle": AxisAngle(),
    "droid_gripper": DroidAction(),
    "inverted_gripper": INVERTED_GRIPPER,
}
KINDS: dict[str, type] = {"pictures": Mapping, "prompt": str, "prompt_key": str, "is_clipped": bool}
KINDS |= dict.fromkeys(("state", "action", "uncommanded", "rates"), list)


def find_layout(name: str | Path) -> Layout:
    """A layout by its name, or from a YAML file.

    Raises:
        ConfigError: no such name or file, or its content is no layout.
    """
    if str(name) in LAYOUTS:
        return LAYOUTS[str(name)]()
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"No layout {str(name)!r}; give a YAML file or one of {sorted(LAYOUTS)}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Layout {path} is not YAML: {str(error).splitlines()[0]}.") from error
    values = _checked(values, {item.name for item in fields(Layout)}, {"pictures", "state", "action"}, str(path))
    _check_kinds(values, KINDS, str(path))
    parts: dict[str, Any] = {
        "pictures": {camera: _picture(each, f"{path}: {camera}") for camera, each in values["pictures"].items()},
        **{name: [_entries(each, f"{path}: {name}") for each in values[name]] for name in ("state", "action")},
        **{name: tuple(values.get(name, ())) for name in ("uncommanded", "rates")},
    }
    return Layout(**{**values, **parts})


def _picture(values: Any, source: str) -> Picture | None:
    if values is None:
        return None
    if isinstance(values, str):
        return Picture(values)
    values = _checked(values, {item.name for item in fields(Picture)}, {"key"}, source)
    if values.get("layout", "hwc") not in ("hwc", "chw"):
        raise ConfigError(f"{source} has layout {values['layout']!r}; expected hwc or chw.")
    _check_kinds(values, {"key": str, "is_rotated": bool}, source)
    return Picture(**values)


def _entries(values: Any, source: str) -> Entries:
    values = _checked(values, {"joints", "key", "conversion", "scale", "offset"}, {"joints"}, source)
    _check_kinds(values, {"key": str}, source)
    joints, name = values["joints"], values.get("conversion")
    if not isinstance(joints, list) or not all(joint is None or isinstance(joint, str) for joint in joints):
        raise ConfigError(f"{source} has joints {joints!r}; expected a list of names, or null for an entry of none.")
    if name is not None and (name not in CONVERSIONS or {"scale", "offset"} & {*values}):
        raise ConfigError(
            f"{source} has conversion {name!r}; expected one of {sorted(CONVERSIONS)}, or instead scale and offset."
        )
    conversion = CONVERSIONS[name] if name is not None else _affine(values, source)
    return Entries(tuple(joints), values.get("key", ""), conversion)


def _affine(values: Mapping[str, Any], source: str) -> Conversion:
    """Robot = scale · environment + offset, each a number or a list of one per entry."""
    given = {name: values[name] for name in ("scale", "offset") if name in values}
    for name, value in given.items():
        numbers = value if isinstance(value, list) and len(value) == len(values["joints"]) else [value]
        if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
            raise ConfigError(f"{source} has {name} {value!r}; expected a number, or one for each joint.")
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Affine(**lists) if lists else UNCHANGED


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type], source: str) -> None:
    for name, kind in kinds.items():
        if name in values and not isinstance(values[name], kind):
            raise ConfigError(f"{source} has {name} {values[name]!r}; expected a {kind.__name__.lower()}.")


def _checked(values: Any, known: set[str], needed: set[str], source: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not needed <= {*values} <= known:
        got = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise ConfigError(f"{source} has {got}; expected {sorted(needed)} and perhaps {sorted(known - needed)}.")
    return dict(values)
