"""What stands in the messages between a policy server and its clients.

An observation is ``{"images": {camera: uint8 [H, W, 3]}, "state": [D], "prompt": text}``; keys of our own that a client
may add, and that others ignore, are ``prefix``, ``noise`` and ``seed``. A server tells of its policy under the key
``pi0_control`` of the metadata that openpi's protocol begins with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import ConfigError, ObservationError, RemoteError
from pi0_control.policy import Pi0Policy, Policy
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, ChunkPrefix, Observation

OURS = "pi0_control"
PROTOCOL_VERSION = 1
OBSERVATION_KEYS, PREFIX_KEYS = ("images", "state", "prompt"), ("actions", "delay", "end")
API_KEY_VARIABLE = "PI0_API_KEY"
MAX_SEED = 2**63

ReadObservation = Callable[[Mapping[str, Any]], Observation]
WriteObservation = Callable[[Observation], dict[str, Any]]
WriteChunk = Callable[[ActionChunk], dict[str, Any]]


@dataclass(frozen=True)
class Announcement:
    """What a server tells of its policy.

    Attributes:
        robot, horizon, execution_horizon, rates: as of the policy.
        required_cameras: cameras every observation must have.
        image_size: side of the square into which the policy fits every image as ``resize_with_pad`` does [pixels];
            None if images are used otherwise.
        max_frame_bytes: longest message it takes.
    """

    robot: RobotSpec
    horizon: int
    execution_horizon: int
    required_cameras: tuple[str, ...] = ()
    image_size: int | None = None
    max_frame_bytes: int | None = None
    rates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        horizon, played = self.horizon, self.execution_horizon
        if not (type(horizon) is int and type(played) is int and 1 <= played <= horizon):
            raise ConfigError(
                f"The execution horizon is {played!r} and the horizon {horizon!r}; expected 1 or more of each, and no "
                "more than the horizon."
            )

    @classmethod
    def of(cls, policy: Policy, max_frame_bytes: int) -> "Announcement":
        """That of a policy."""
        config = policy.config if isinstance(policy, Pi0Policy) else None
        return cls(
            policy.robot,
            policy.horizon,
            policy.execution_horizon,
            () if config is None else config.required_cameras,
            config.model.vision.image_size if config is not None and config.resize == "pad_antialias" else None,
            max_frame_bytes,
            policy.rates,
        )

    def to_message(self) -> dict[str, Any]:
        """Plain values, the inverse of :meth:`from_message`."""
        lists = {name: list(getattr(self, name)) for name in ("required_cameras", "rates")}
        values = {**vars(self), "robot": self.robot.to_dict(), **lists}
        return {OURS: {"protocol_version": PROTOCOL_VERSION, **values}}

    @classmethod
    def from_message(cls, metadata: Mapping[str, Any]) -> "Announcement | None":
        """That of a server's metadata; None where another kind of server sent them.

        Raises:
            RemoteError: a server of ours, of another version.
        """
        if OURS not in metadata:
            return None
        values = metadata[OURS]
        version = values.pop("protocol_version", None) if isinstance(values, dict) else None
        if version != PROTOCOL_VERSION:
            raise RemoteError(
                f"The server speaks version {version!r} of the protocol; expected {PROTOCOL_VERSION}, so one of the "
                "two needs an update."
            )
        try:
            robot = RobotSpec.from_dict(values.pop("robot"), "the server's robot")
            tuples = {name: tuple(values[name]) for name in ("required_cameras", "rates")}
            announcement = cls(robot, **{**values, **tuples})
        except (ConfigError, KeyError, TypeError) as error:
            raise RemoteError(f"What the server tells of its policy cannot be used: {error}.") from error
        return announcement


def check_api_key(key: str) -> None:
    """Raise ConfigError, which does not show it, if a key would not arrive in an HTTP header as it is."""
    if not (key and key.isascii() and key.isprintable() and key == key.strip()):
        raise ConfigError(
            "The API key is empty, begins or ends with a space or has characters that no HTTP header may have; "
            "expected printable ASCII."
        )


@dataclass(frozen=True)
class Request:
    """What a client asks: arguments of ``Policy.infer``, and the seed of the ``Policy.reset`` before it, if any."""

    observation: Observation
    prefix: ChunkPrefix | None = None
    noise: NDArray[np.float32] | None = None
    seed: int | None = None


def read_request(message: Mapping[str, Any], read: ReadObservation) -> Request:
    """The request in a message.

    Raises:
        ObservationError: something is missing or not as expected.
    """
    prefix, noise, seed = (message.get(key) for key in ("prefix", "noise", "seed"))
    if seed is not None and not (type(seed) is int and 0 <= seed < MAX_SEED):
        raise ObservationError(f"The seed is {seed!r:.80}; expected a whole number of 0 or more.")
    drawn = None if noise is None else _floats(noise, "noise")
    if drawn is not None and not np.isfinite(drawn).all():
        raise ObservationError("The noise is not finite; expected numbers as the policy would draw them.")
    return Request(read(message), None if prefix is None else _read_prefix(prefix), drawn, seed)


def write_request(request: Request, write: WriteObservation) -> dict[str, Any]:
    """The message of a request; keys of our own are there only where they say something."""
    message = write(request.observation)
    if request.prefix is not None:
        values = {key: getattr(request.prefix, key) for key in PREFIX_KEYS}
        message["prefix"] = {key: each.item() if isinstance(each, np.generic) else each for key, each in values.items()}
    if request.noise is not None:
        message["noise"] = np.asarray(request.noise, np.float32)
    return message if request.seed is None else {**message, "seed": request.seed}


def read_observation(message: Mapping[str, Any]) -> Observation:
    """The observation in a message of our own layout; whether it fits the robot is for the policy to say.

    Raises:
        ObservationError: a key is missing, or its value is of another kind than expected.
    """
    missing = [key for key in OBSERVATION_KEYS if key not in message]
    if missing:
        raise ObservationError(f"The observation has {_names(message)} and lacks {missing}.")
    images = message["images"]
    if not isinstance(images, dict) or not all(isinstance(image, np.ndarray) for image in images.values()):
        raise ObservationError("The observation's images are not arrays by camera name; expected uint8 [H, W, 3] each.")
    return Observation(images, _floats(message["state"], "state"), _text(message["prompt"]))


def write_observation(observation: Observation) -> dict[str, Any]:
    """The message of an observation, the inverse of :func:`read_observation`."""
    state = np.asarray(observation.state, np.float32)
    return {"images": dict(observation.images), "state": state, "prompt": observation.prompt}


def write_chunk(chunk: ActionChunk) -> dict[str, Any]:
    """The reply: ``actions`` [H, D] and openpi's ``policy_timing``, whose ``infer_ms`` is the model's time alone."""
    stages = {f"{stage}_ms": float(value) for stage, value in chunk.timing_ms.items()}
    infer_ms = sum(value for stage, value in stages.items() if stage != "preprocess_ms")
    return {"actions": np.asarray(chunk.actions, np.float32), "policy_timing": {**stages, "infer_ms": infer_ms}}


def read_chunk(message: Mapping[str, Any], observation: Observation, policy: Announcement) -> ActionChunk:
    """The chunk in a reply; ``timing_ms`` has the server's stages.

    Raises:
        RemoteError: no actions in it, or not those of this policy's robot and horizon.
    """
    actions, shape = message.get("actions"), (policy.horizon, len(policy.robot.joints))
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu" or actions.shape != shape:
        got = f"{actions.dtype} {list(actions.shape)}" if isinstance(actions, np.ndarray) else _names(message)
        raise RemoteError(f"The server answered with {got}; expected actions {list(shape)}.")
    targets = _floats(actions, "actions")
    if not np.isfinite(targets).all():
        raise RemoteError("The server answered with actions that are not finite; expected joint targets.")
    timing = message.get("policy_timing")
    times = timing if isinstance(timing, dict) else {}
    stages = {name.removesuffix("_ms"): float(value) for name, value in times.items() if isinstance(value, int | float)}
    if len(stages) > 1:
        stages.pop("infer", None)  # the sum of others
    return ActionChunk(targets, observation.stamp_s, policy.robot.dt_s, stages, observation.prompt)


def _read_prefix(values: Any) -> ChunkPrefix:
    is_map = isinstance(values, dict) and values.keys() == set(PREFIX_KEYS)
    if not is_map or not all(type(values[key]) is int for key in ("delay", "end")):
        got = _names(values) if isinstance(values, dict) else type(values).__name__
        raise ObservationError(f"The prefix has {got}; expected actions [K, D] and the whole numbers delay and end.")
    return ChunkPrefix(_floats(values["actions"], "actions of the prefix"), values["delay"], values["end"])


def _floats(values: Any, name: str) -> NDArray[np.float32]:
    """Numbers as float32 of any shape; what float32 cannot hold becomes infinite."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise ValueError(array.dtype)
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    except ValueError as error:
        raise ObservationError(f"The {name} is not an array of numbers.") from error


def _text(prompt: Any) -> str:
    """A prompt that may come as text, bytes or either in a NumPy wrapping."""
    try:
        value = prompt.item() if isinstance(prompt, np.ndarray) and prompt.ndim == 0 else prompt
        value = value.decode("utf-8") if isinstance(value, bytes) else value
    except ValueError as error:
        raise ObservationError("The prompt is not text in Unicode.") from error
    if not isinstance(value, str):
        raise ObservationError(f"The prompt is {type(value).__name__}; expected text.")
    return str(value)


def _names(message: Mapping[str, Any]) -> str:
    """Its keys, as far as they fit a sentence."""
    return f"{sorted(message)!s:.200}"
