"""PolicyConfig: everything about a policy that its tensors cannot tell, and ``policy.json`` that holds it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from pi0_control.errors import CheckpointError, ConfigError, RobotMismatchError
from pi0_control.model.config import Pi0Config
from pi0_control.policy.camera_stats import CameraStats
from pi0_control.policy.images import Resize
from pi0_control.policy.norm_stats import OPENPI_EPS, NormKind, NormRule
from pi0_control.policy.tokenizer import PromptFormat
from pi0_control.policy.units import UnitsName, units_joints
from pi0_control.robot import RobotSpec

FORMAT_VERSION = 1
LATER_FIELDS = ("rtc_max_delay", "norm_rule", "units", "uncommanded", "rates", "camera_stats")  # new since version 1
CAMERA_SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")  # openpi's names, in the order of its prefix


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How observations of one robot become model inputs and model outputs become its joint targets.

    Attributes:
        model: sizes and switches of the network.
        robot: the robot it was trained for.
        cameras: the robot's camera for each image slot of the model, in the order of the prefix; None leaves a slot
            masked for good.
        optional_cameras: cameras an observation may lack; their slots are masked then.
        action_space: what the model predicts: actions as the robot takes them, or for the joints of ``delta_mask``
            their distance to the state of the observation.
        delta_mask: one entry per joint.
        norm: normalisation of state and actions, with ``norm_eps`` in its denominator as ``norm_rule`` says.
        resize: how images are fitted into the model's square.
        prompt_format: ``pi0`` is the instruction alone, and ``lerobot_pi0`` that without cleaning; ``pi05`` has the
            state as integers behind it.
        discrete_state_input: the state is in the prompt; goes with ``pi05``.
        pad_state_in_prompt: that state is padded with zeros to the model's action_dim, as some checkpoints expect.
        num_steps: denoising steps per chunk.
        execution_horizon: recommended number of actions to play before the next chunk.
        rtc_max_delay: how many first actions of a chunk may be given to the model, which then continues them; it was
            trained for that (training-time real-time chunking). 0 is none.
        norm_rule: which library's arithmetic, see :class:`VectorStats`.
        units: those of the training data where they are not the robot's, see :mod:`pi0_control.policy.units`.
        uncommanded: joints of the state that no action is predicted for; the others are, in order, the first entries of
            the model's actions.
        rates: joints whose actions are velocities or steps, 0 to stand still, and no positions.
        camera_stats: what cameras of the robot showed in training, as far as that is known.
        provenance: how the policy came about, free text by topic.
    """

    model: Pi0Config
    robot: RobotSpec
    cameras: Mapping[str, str | None]
    action_space: Literal["joint_delta", "joint_absolute"]
    delta_mask: tuple[bool, ...]
    execution_horizon: int
    optional_cameras: tuple[str, ...] = ()
    norm: NormKind = "z_score"
    norm_eps: float = OPENPI_EPS
    resize: Resize = "pad_antialias"
    prompt_format: PromptFormat = "pi0"
    discrete_state_input: bool = False
    pad_state_in_prompt: bool = False
    num_steps: int = 10
    rtc_max_delay: int = 0
    norm_rule: NormRule = "openpi"
    units: UnitsName = "robot"
    uncommanded: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    camera_stats: Mapping[str, CameraStats] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Raise ConfigError where a setting is unknown or two do not go together."""
        _check_version(self.format_version)
        _check_types(self)
        self._check_actions()
        self._check_cameras()
        _require(
            self.discrete_state_input == (self.prompt_format == "pi05"),
            f"discrete_state_input {self.discrete_state_input} does not go with prompt_format {self.prompt_format!r}; "
            "expected true for pi05 (which writes the state) and false for others.",
        )
        _require(
            self.discrete_state_input or not self.pad_state_in_prompt,
            "pad_state_in_prompt needs discrete_state_input.",
        )

    @classmethod
    def for_robot(
        cls,
        robot: RobotSpec,
        model: Pi0Config,
        action_space: Literal["joint_delta", "joint_absolute"] = "joint_delta",
        **settings: Any,
    ) -> "PolicyConfig":
        """The usual settings: cameras in order, deltas for joints but grippers and rates, half a horizon to execute.

        A model without a state token (π0.5) reads the state in the prompt and normalises by quantiles.
        """
        slots = [*CAMERA_SLOTS, *(f"camera_{index}" for index in range(len(CAMERA_SLOTS), model.num_cameras))]
        names = [*robot.cameras, *[None] * model.num_cameras]
        absolute = {*settings.get("rates", ()), *settings.get("uncommanded", ())}
        absolute |= {joint.name for joint in robot.joints if joint.kind == "gripper" or action_space != "joint_delta"}
        defaults: dict[str, Any] = {
            "cameras": dict(zip(slots[: model.num_cameras], names, strict=False)),
            "delta_mask": tuple(name not in absolute for name in robot.joint_names),
            "execution_horizon": max(1, model.action_horizon // 2),
        }
        if model.state_input == "none":
            defaults |= {"prompt_format": "pi05", "discrete_state_input": True, "norm": "quantile"}
        return cls(robot=robot, model=model, action_space=action_space, **{**defaults, **settings})

    def check_robot(self, robot: RobotSpec) -> None:
        """Refuse another robot than the one the policy was made for.

        Joints (names, kinds, order, position limits), the cameras the policy looks through and the control rate have
        to agree; further cameras, speeds, efforts and the rest position may differ.

        Raises:
            RobotMismatchError: says what differs.
        """
        check_robot(self.robot, robot, self.required_cameras)

    @property
    def required_cameras(self) -> tuple[str, ...]:
        """Robot cameras every observation must have."""
        return tuple(name for name in self.cameras.values() if name is not None and name not in self.optional_cameras)

    @property
    def commanded(self) -> tuple[int, ...]:
        """Indices of the joints that actions are predicted for."""
        return tuple(index for index, name in enumerate(self.robot.joint_names) if name not in self.uncommanded)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of :meth:`from_dict`; a switch that is off leaves no trace."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {"model": self.model.to_dict(), "robot": self.robot.to_dict(), "cameras": dict(self.cameras)}
        seen = {name: stats.to_dict() for name, stats in self.camera_stats.items()}
        values |= {**plain, "camera_stats": seen, "provenance": dict(self.provenance)}
        off = [name for name in LATER_FIELDS if values[name] == _DEFAULTS[name]]
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in off
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PolicyConfig":
        """Build from plain values.

        Raises:
            ConfigError: an unknown version, unknown or missing keys, or values that do not fit together.
        """
        _require(isinstance(values, Mapping), f"The policy config is {type(values).__name__}; expected an object.")
        _check_version(values.get("format_version"))
        values = {**{name: _DEFAULTS[name] for name in LATER_FIELDS}, **values}
        expected = {item.name for item in fields(cls)}
        _require(
            set(values) == expected,
            f"The policy config has unknown keys {sorted(set(values) - expected)} and lacks "
            f"{sorted(expected - set(values))}; expected exactly {sorted(expected)}.",
        )
        for name in ("model", "robot", "cameras", "camera_stats", "provenance"):
            _require(isinstance(values[name], Mapping), f"The policy config's {name} is not an object.")
        lists = ("delta_mask", "optional_cameras", "uncommanded", "rates")
        for name in lists:
            _require(isinstance(values[name], list | tuple), f"The policy config's {name} is not a list.")
        built = {
            "model": Pi0Config.from_dict(values["model"]),
            "robot": RobotSpec.from_dict(values["robot"], source="The policy config's robot"),
            "camera_stats": {name: CameraStats.from_dict(stats) for name, stats in values["camera_stats"].items()},
        }
        return cls(**{**values, **built, **{name: tuple(values[name]) for name in lists}})

    @classmethod
    def load(cls, path: str | Path) -> "PolicyConfig":
        """Read ``policy.json``.

        Raises:
            CheckpointError: no such file, not JSON, or not a policy config of this version.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise CheckpointError(f"No policy config {path}.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"Policy config {path} is not valid JSON: {error}.") from error
        except (ConfigError, TypeError, ValueError) as error:  # nested values of a wrong type end in the latter two
            raise CheckpointError(f"Policy config {path} does not fit: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write ``policy.json``."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _check_actions(self) -> None:
        joints, horizon = len(self.robot.joints), self.model.action_horizon
        _require(
            joints <= self.model.action_dim,
            f"Robot {self.robot.name!r} has {joints} joints; expected at most the model's action_dim "
            f"{self.model.action_dim}.",
        )
        _require(
            len(self.delta_mask) == joints and all(isinstance(entry, bool) for entry in self.delta_mask),
            f"delta_mask is {list(self.delta_mask)}; expected {joints} booleans, one per joint.",
        )
        _require(
            (self.action_space == "joint_delta") == any(self.delta_mask),
            f"action_space {self.action_space!r} does not go with delta_mask {list(self.delta_mask)}; expected "
            "some true for joint_delta, none for joint_absolute.",
        )
        _require(
            1 <= self.execution_horizon <= horizon,
            f"execution_horizon is {self.execution_horizon}; expected 1 to {horizon}, the model's action_horizon.",
        )
        _require(
            0 <= self.rtc_max_delay < horizon,
            f"rtc_max_delay is {self.rtc_max_delay}; expected 0 to {horizon - 1}, below the model's action_horizon.",
        )
        _require(
            {*self.uncommanded} < {*self.robot.joint_names},
            f"uncommanded is {list(self.uncommanded)}; expected some, not all, of {list(self.robot.joint_names)}.",
        )
        commanded = [self.robot.joint_names[index] for index in self.commanded]
        differing = [name for name, is_delta in zip(self.robot.joint_names, self.delta_mask, strict=True) if is_delta]
        for what, names in (("rates", self.rates), ("delta_mask", differing)):
            _require({*names} <= {*commanded}, f"{what} has {list(names)}; expected joints with actions: {commanded}.")
        _require(
            self.units == "robot" or (joints == units_joints(self.units) and not self.uncommanded),
            f"units {self.units!r} are of {units_joints(self.units)} joints with an action each; robot "
            f"{self.robot.name!r} has {joints} and no action for {list(self.uncommanded)}.",
        )
        _require(self.num_steps >= 1, f"num_steps is {self.num_steps}; expected 1 or more.")
        _require(self.norm_eps > 0, f"norm_eps is {self.norm_eps}; expected above zero.")

    def _check_cameras(self) -> None:
        used = [name for name in self.cameras.values() if name is not None]
        available = list(self.robot.cameras)
        _require(
            len(self.cameras) == self.model.num_cameras,
            f"cameras has slots {list(self.cameras)}; expected {self.model.num_cameras}, the model's num_cameras.",
        )
        _require(
            bool(used) and len(set(used)) == len(used) and set(used) <= set(available),
            f"cameras maps to {used}; expected distinct cameras of robot {self.robot.name!r}: {available}.",
        )
        _require(
            set(self.camera_stats) <= set(available),
            f"camera_stats are of {list(self.camera_stats)}; expected cameras of {available}.",
        )
        _require(
            set(self.optional_cameras) < set(used),
            f"optional_cameras are {list(self.optional_cameras)}; expected some, not all, of {used}.",
        )


def check_robot(made_for: RobotSpec, robot: RobotSpec, required_cameras: Sequence[str]) -> None:
    """What :meth:`PolicyConfig.check_robot` does, where there is only the robot a policy was made for."""
    differences = _robot_differences(made_for, robot)
    missing = [name for name in required_cameras if name not in robot.cameras]
    if missing:
        differences.append(f"it looks through cameras {missing} and the robot has {list(robot.cameras)}")
    if differences:
        raise RobotMismatchError(
            f"The policy was made for robot {made_for.name!r} and does not fit {robot.name!r}: "
            + "; ".join(differences)
            + "."
        )


def _robot_differences(made_for: RobotSpec, robot: RobotSpec) -> list[str]:
    ours, theirs = ([(joint.name, joint.kind) for joint in spec.joints] for spec in (made_for, robot))
    differences = []
    if ours != theirs:
        names = [[f"{name} ({kind})" for name, kind in joints] for joints in (ours, theirs)]
        differences.append(f"it moves joints {names[0]} and the robot has {names[1]}")
    else:
        for mine, other in zip(made_for.joints, robot.joints, strict=True):
            if not np.allclose((mine.lower, mine.upper), (other.lower, other.upper), rtol=0, atol=1e-6):
                differences.append(
                    f"joint {mine.name!r} has limits [{mine.lower}, {mine.upper}] there and "
                    f"[{other.lower}, {other.upper}] here"
                )
    if not np.isclose(made_for.control_rate_hz, robot.control_rate_hz):
        differences.append(f"it runs at {made_for.control_rate_hz:g} Hz and the robot at {robot.control_rate_hz:g} Hz")
    return differences


_DEFAULTS = {item.name: item.default for item in fields(PolicyConfig)} | {"camera_stats": {}}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_version(version: Any) -> None:
    _require(version == FORMAT_VERSION, f"Policy format_version {version!r} is unknown; expected {FORMAT_VERSION}.")


def _check_types(config: PolicyConfig) -> None:
    """Choices among their literals; numbers and booleans of the right type, since JSON promises nothing."""
    for name, hint in get_type_hints(PolicyConfig).items():
        value, choices = getattr(config, name), get_args(hint)
        if choices and all(isinstance(choice, str) for choice in choices):
            _require(value in choices, f"{name} is {value!r}; expected one of {list(choices)}.")
        allowed = {bool: (bool,), int: (int,), float: (int, float)}.get(hint)
        if allowed:
            fits = isinstance(value, allowed) and (hint is bool or not isinstance(value, bool))
            _require(fits, f"{name} is {value!r}; expected {hint.__name__}.")
