"""RobotSpec: the joints, limits, cameras and control rate of a robot, read from YAML.

Everything that depends on the number of joints asks ``len(spec.joints)``; another robot is another YAML file.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from pi0_control.errors import ConfigError

ROBOTS_DIR = Path(__file__).parent / "robots"


@dataclass(frozen=True)
class Joint:
    """One entry of state, action and command.

    Attributes:
        kind: ``revolute`` [rad], ``prismatic`` [m] or ``gripper`` (opening, 0 closed .. 1 open).
        lower, upper: position limits in the joint's unit.
        max_velocity: in the joint's unit per second.
        max_effort: [Nm] for revolute joints, [N] otherwise.
        home: the rest position.
        max_acceleration: in the joint's unit per second squared; None where it is not known.
    """

    name: str
    kind: Literal["revolute", "prismatic", "gripper"]
    lower: float
    upper: float
    max_velocity: float
    max_effort: float
    home: float
    max_acceleration: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("revolute", "prismatic", "gripper"):
            raise ConfigError(f"Joint {self.name!r} has kind {self.kind!r}; expected revolute, prismatic or gripper.")
        if not self.lower < self.upper:
            raise ConfigError(f"Joint {self.name!r} has limits [{self.lower}, {self.upper}]; expected lower < upper.")
        if not self.lower <= self.home <= self.upper:
            raise ConfigError(f"Joint {self.name!r} has home {self.home} outside [{self.lower}, {self.upper}].")
        if not (self.max_velocity > 0 and self.max_effort > 0):
            raise ConfigError(f"Joint {self.name!r} needs max_velocity and max_effort above zero.")
        if self.max_acceleration is not None and not self.max_acceleration > 0:
            raise ConfigError(f"Joint {self.name!r} has max_acceleration {self.max_acceleration}; expected above zero.")


@dataclass(frozen=True)
class RobotSpec:
    """A robot as pi0_control sees it."""

    name: str
    joints: tuple[Joint, ...]
    cameras: tuple[str, ...]
    control_rate_hz: float

    def __post_init__(self) -> None:
        names = self.joint_names
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"Robot {self.name!r} needs joints with distinct names, got {list(names)}.")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"Robot {self.name!r} needs cameras with distinct names, got {list(self.cameras)}.")
        if not self.control_rate_hz > 0:
            raise ConfigError(f"Robot {self.name!r} has control_rate_hz {self.control_rate_hz}; expected above zero.")

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names in command order."""
        return tuple(joint.name for joint in self.joints)

    @property
    def lower(self) -> NDArray[np.float32]:
        """Lower position limits, float32 [D]."""
        return self._column("lower")

    @property
    def upper(self) -> NDArray[np.float32]:
        """Upper position limits, float32 [D]."""
        return self._column("upper")

    @property
    def max_velocity(self) -> NDArray[np.float32]:
        """Velocity limits per second, float32 [D]."""
        return self._column("max_velocity")

    @property
    def home(self) -> NDArray[np.float32]:
        """Rest position, float32 [D]."""
        return self._column("home")

    @property
    def dt_s(self) -> float:
        """Time between two commands [s]."""
        return 1.0 / self.control_rate_hz

    @property
    def gripper_mask(self) -> NDArray[np.bool_]:
        """True where the joint is a gripper, bool [D]."""
        return np.array([joint.kind == "gripper" for joint in self.joints])

    def _column(self, name: str) -> NDArray[np.float32]:
        return np.array([getattr(joint, name) for joint in self.joints], np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the inverse of :meth:`from_dict`; what is not known is left out."""
        joints = [{key: value for key, value in asdict(joint).items() if value is not None} for joint in self.joints]
        return {**asdict(self), "joints": joints, "cameras": list(self.cameras)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "robot") -> "RobotSpec":
        """Build from plain values; unknown or missing keys and wrong types raise ConfigError naming ``source``."""
        _check_keys(cls, values, source)
        name, joints, cameras, rate = (values[entry.name] for entry in fields(cls))
        _require_text(name, f"{source}: name")
        _require_list(joints, f"{source}: joints")
        _require_list(cameras, f"{source}: cameras")
        for index, camera in enumerate(cameras):
            _require_text(camera, f"{source}: cameras[{index}]")
        _require_number(rate, f"{source}: control_rate_hz")
        for index, joint in enumerate(joints):
            _check_joint(joint, f"{source}: joint {index}")
        return cls(name, tuple(Joint(**joint) for joint in joints), tuple(cameras), float(rate))

    @classmethod
    def from_yaml(cls, path: str | Path) -> "RobotSpec":
        """Read a robot file; ``from_yaml("arm6")`` reads the bundled one.

        Raises:
            ConfigError: no such file, or its content does not describe a robot.
        """
        bundled = {file.stem: file for file in sorted(ROBOTS_DIR.glob("*.yaml"))}
        file = bundled.get(str(path), Path(path))
        if not os.path.isfile(file):  # the pathlib way raises where a name is too long
            raise ConfigError(f"No robot file {str(path)!r}; give a YAML file or one of {sorted(bundled)}.")
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"Robot file {file} is not text in UTF-8; expected YAML.") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"Robot file {file} is not YAML: {str(error).splitlines()[0]}.") from error
        return cls.from_dict(values, source=str(file))


def _check_keys(cls: type, values: Any, source: str) -> None:
    expected = {field.name for field in fields(cls)}
    optional = {field.name for field in fields(cls) if field.default is not MISSING}
    if not isinstance(values, Mapping) or not expected - optional <= set(values) <= expected:
        got = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        but = f" ({', '.join(sorted(optional))} may be left out)" if optional else ""
        raise ConfigError(f"{source} has {got}; expected exactly the keys {sorted(expected)}{but}.")


def _check_joint(values: Any, source: str) -> None:
    _check_keys(Joint, values, source)
    _require_text(values["name"], f"{source}: name")
    for key in ("lower", "upper", "max_velocity", "max_effort", "home"):
        _require_number(values[key], f"{source}: {key}")
    if values.get("max_acceleration") is not None:
        _require_number(values["max_acceleration"], f"{source}: max_acceleration")


def _require_text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{what} is {value!r}; expected text.")


def _require_list(value: Any, what: str) -> None:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{what} is {value!r}; expected a list.")


def _require_number(value: Any, what: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{what} is {value!r}; expected a finite number.")
