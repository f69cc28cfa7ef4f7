"""Parameters of the nodes, declared once; for the policy node, a frozen, checked configuration made from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node

from pi0_control.control import ChunkingConfig, SafetyConfig
from pi0_control.control.chunking import OnNewPrompt, Strategy
from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec

OutputKind = Literal["joint_state", "positions", "trajectory", "twist"]
Grippers = Literal["with_arm", "apart"]
STEPS, SECONDS = (0, 1000), (0.0, 3600.0)
HAND = ("prismatic",) * 3 + ("revolute",) * 3
CAMERA_AGES = "safety.camera_ages_s"
AT_SPEED = "in time at the velocity limit"


@dataclass(frozen=True)
class Entry:
    """One parameter.

    Attributes:
        default: its type is the parameter's.
        description: with its unit.
        bounds: lowest and highest value of a number.
        choices: of a text.
        is_live: may change at any time; others of the policy node only while it is unconfigured.
        is_read_only: never changes; what the node was started with holds.
        none: the value that stands for None in the configuration.
    """

    default: str | bool | int | float
    description: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    is_live: bool = False
    is_read_only: bool = False
    none: float | None = None

    def descriptor(self) -> ParameterDescriptor:
        """As ROS shows it."""
        descriptor = ParameterDescriptor(description=self.description, read_only=self.is_read_only)
        if self.choices:
            descriptor.additional_constraints = f"one of {', '.join(self.choices)}"
        if isinstance(self.default, float) and self.bounds:
            low, high = map(float, self.bounds)
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif self.bounds:
            low, high = self.bounds
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        return descriptor


def _seconds(default: float, description: str, none: float | None = None) -> Entry:
    return Entry(default, f"{description} [s]", SECONDS, none=none)


TABLE: dict[str, Entry] = {
    "policy": Entry("mini", "a bundled policy, a policy directory, ws://host:port, or hold, which stays put"),
    "robot": Entry("", "a bundled robot or a YAML file; empty for the robot that the policy was made for"),
    "policy_config": Entry("", "what a public checkpoint does not tell: a preset such as pi05_droid, or a file"),
    "asset": Entry("", "whose statistics, where an openpi checkpoint has those of several robots"),
    "tokenizer": Entry("", "SentencePiece file, where none lies in or beside the policy"),
    "device": Entry("cpu", "torch device, such as cpu or cuda"),
    "dtype": Entry("float32", "of the network", choices=("float32", "bfloat16", "float8")),
    "threads": Entry(0, "of the CPU; 0: one if the network is small, such as mini, else as many as cores", (0, 1024)),
    "prompt": Entry("", "the instruction; without one the arm holds", is_live=True),
    "seed": Entry(-1, "restarts the policy's noise at ~/reset; -1 lets it run on", (-1, 2**31 - 1), is_live=True),
    "output": Entry("joint_state", "what is published", choices=get_args(OutputKind)),
    "grippers": Entry("with_arm", "apart: for a controller of their own, gripper_commands", choices=get_args(Grippers)),
    "twist_frame": Entry("", "frame_id of twist_commands, in which ee_pose is too"),
    "ee_pose_joints": Entry("", "six, separated by blanks, whose state is ee_pose: position [m], axis-angle [rad]"),
    "enabled": Entry(False, "whether the policy drives as soon as the node is active; else ~/enable says when"),
    "autostart": Entry(False, "configure and activate when the process starts"),
    "dry_run": Entry(False, "do everything but publish the commands"),
    "lock_step": Entry(False, "answer every set of inputs of one stamp with one command of that stamp"),
    "cameras": Entry("", "cameras to use, separated by blanks; empty for all of the robot's"),
    "image_transport": Entry("raw", "the type of the images", choices=("raw", "compressed")),
    "image_reliability": Entry("best_effort", "of the inputs' QoS", choices=("best_effort", "reliable")),
    "max_skew_s": _seconds(0.2, "how far apart the cameras' stamps may be"),
    "chunking.strategy": Entry("async", "how chunks are played", choices=get_args(Strategy)),
    "chunking.execution_horizon": Entry(
        0, "actions of a chunk to play [steps]; 0 as the policy says, half a chunk at most but with sync", STEPS, none=0
    ),
    "chunking.on_new_prompt": Entry("drop", "what becomes of chunks of a former prompt", choices=get_args(OnNewPrompt)),
    "chunking.ensemble_decay": Entry(0.01, "above 0, an ensemble favours old predictions", (-1.0, 100.0)),
    "chunking.interpolation": Entry(1, "commands per action of the policy", (1, 100)),
    "chunking.first_delay": Entry(-1, "first forecast of the delay [steps]; -1 the horizon", (-1, 1000), none=-1),
    "chunking.delay_memory": Entry(10, "counted delays that a forecast is the maximum of", (1, 1000)),
    "chunking.max_delay": Entry(-1, "most steps given to the policy as decided; -1 for any", (-1, 1000), none=-1),
    "safety.acceleration_time_s": _seconds(0.1, "to the velocity limit, for joints without max_acceleration"),
    "safety.max_elapsed_steps": Entry(2.0, "control periods that one command may make up for", (0.0, 100.0)),
    "safety.max_jump_s": _seconds(0.3, f"how far from the measured pose a command may be, {AT_SPEED}"),
    "safety.near_s": _seconds(0.05, f"what counts as near, {AT_SPEED}"),
    "safety.soft_start_speed": Entry(0.25, "fraction of the velocity limits of a soft start", (0.0, 1.0)),
    "safety.soft_start_after_s": _seconds(1.0, "a pause after which it starts softly"),
    "safety.limit_margin_s": _seconds(0.05, f"how far outside its limits a joint may be, {AT_SPEED}"),
    "safety.max_tracking_error_s": _seconds(0.2, f"how far the arm may be from its command, {AT_SPEED}"),
    "safety.tracking_fault_s": _seconds(0.5, "for how long it may be further"),
    "safety.max_state_age_s": _seconds(0.2, "the oldest that joint states may be"),
    "safety.max_camera_age_s": _seconds(0.5, "the oldest that images may be"),
    "safety.camera_ages_s": Entry("", "for single cameras [s], such as base_0_rgb=0.2, separated by blanks"),
    "safety.max_prompt_age_s": _seconds(0.0, "how long a prompt is followed unless it comes again; 0 for ever", none=0),
    "safety.max_ahead_s": _seconds(0.05, "how far in the future a stamp may lie"),
    "safety.max_inference_s": _seconds(2.0, "an inference that takes longer has failed"),
    "safety.policy_fault_s": _seconds(5.0, "a policy that fails for longer is a fault"),
}


@dataclass(frozen=True)
class NodeConfig:
    """What the node is told; the fields are those of :data:`TABLE`.

    Raises:
        ConfigError: a value that does not exist or does not fit, by the name of its parameter.
    """

    policy: str
    robot: str
    policy_config: str
    asset: str
    tokenizer: str
    device: str
    dtype: str
    threads: int
    prompt: str
    seed: int
    output: OutputKind
    grippers: Grippers
    twist_frame: str
    ee_pose_joints: str
    enabled: bool
    autostart: bool
    dry_run: bool
    lock_step: bool
    cameras: str
    image_transport: str
    image_reliability: str
    max_skew_s: float
    chunking: ChunkingConfig
    safety: SafetyConfig

    def __post_init__(self) -> None:
        for name, needed in (("output", "joint_state"), ("grippers", "with_arm")):
            if self.lock_step and getattr(self, name) != needed:
                raise ConfigError(f"Parameter {name} is {getattr(self, name)!r}; expected {needed!r} with lock_step.")
        if self.lock_step and self.chunking.interpolation != 1:
            raise ConfigError(f"chunking.interpolation is {self.chunking.interpolation}; expected 1 with lock_step.")

    def cameras_of(self, robot: RobotSpec) -> tuple[str, ...]:
        """Those to use, in the robot's order."""
        names = self.cameras.split() or robot.cameras
        if unknown := sorted({*names} - {*robot.cameras}):
            raise ConfigError(f"Parameter cameras has {unknown}; robot {robot.name!r} has {list(robot.cameras)}.")
        return tuple(name for name in robot.cameras if name in names)

    def pose_joints_of(self, robot: RobotSpec) -> tuple[str, ...]:
        """Those whose state is the pose of the hand, six or none."""
        names = tuple(self.ee_pose_joints.split())
        if names and not (len(names) == len({*names}) == len(HAND) and {*names} <= {*robot.joint_names}):
            raise ConfigError(
                f"Parameter ee_pose_joints has {list(names)}; expected six of robot {robot.name!r}: "
                f"{list(robot.joint_names)}."
            )
        return names

    def check_rates(self, robot: RobotSpec, rates: Sequence[str]) -> None:
        """Raise ConfigError unless the output suits a policy that moves these joints by velocities or steps."""
        kinds = tuple(joint.kind for joint in robot.joints if joint.name in rates)[: len(HAND)]
        if self.output != "twist" and rates:
            raise ConfigError(
                f"The policy moves {list(rates)} by velocities or steps, and parameter output is {self.output!r}; "
                "expected 'twist'."
            )
        if self.output == "twist" and (kinds != HAND or not self.twist_frame):
            raise ConfigError(
                f"Parameter output is 'twist', twist_frame is {self.twist_frame!r}, and the policy moves {list(rates)} "
                "by velocities or steps; expected a frame, and the hand's three places and three rotations first."
            )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "NodeConfig":
        """From a value for every name in :data:`TABLE`."""
        for name, entry in TABLE.items():
            if entry.choices and values[name] not in entry.choices:
                raise ConfigError(f"Parameter {name} is {values[name]!r}; expected one of {list(entry.choices)}.")
        own = {entry.name: values[entry.name] for entry in fields(cls) if entry.name in TABLE}
        values = {**values, CAMERA_AGES: _camera_ages(values[CAMERA_AGES])}
        safety = _group(SafetyConfig, "safety", values)
        return cls(**own, chunking=_group(ChunkingConfig, "chunking", values), safety=safety)


def _camera_ages(text: str) -> dict[str, float]:
    """Seconds by camera."""
    try:
        return {name: float(age_s) for name, age_s in (pair.split("=") for pair in text.split())}
    except ValueError as error:
        raise ConfigError(f"Parameter {CAMERA_AGES} is {text!r}; expected such as 'base_0_rgb=0.2'.") from error


def _group(config: type, group: str, values: Mapping[str, Any]) -> Any:
    """A frozen configuration from the parameters named after its fields."""
    names = {entry.name: f"{group}.{entry.name}" for entry in fields(config)}
    given = {field: values[name] for field, name in names.items()}
    try:
        return config(**{field: None if given[field] == TABLE[names[field]].none else given[field] for field in given})
    except ConfigError as error:
        raise ConfigError(f"Parameters {group}.*: {error}") from error


def declare(node: Node, table: Mapping[str, Entry]) -> None:
    """Declare all of a table.

    Raises:
        ConfigError: a value given from outside has the wrong type or is out of range.
    """
    for name, entry in table.items():
        try:
            node.declare_parameter(name, entry.default, entry.descriptor())
        except ParameterException as error:
            raise ConfigError(f"Parameter {name}: {error}; expected {entry.description}.") from error


def values(node: Node, table: Mapping[str, Entry]) -> dict[str, Any]:
    """What the parameters of a table are now, by name."""
    return {name: node.get_parameter(name).value for name in table}
