"""EnvironmentMapping: an environment's observations and actions in robot terms, checked once against its spaces."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import ConfigError, ObservationError
from pi0_control.robot import RobotSpec


class Conversion(Protocol):
    """Between an environment's units and the robot's, for the last axis of a vector [..., n] or a batch of them."""

    def to_robot(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The environment's entries as the robot's, which may be fewer or more."""

    def to_environment(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The robot's entries as the environment's."""


@dataclass(frozen=True)
class Affine:
    """Robot = ``scale`` · environment + ``offset``, one number for all entries or one for each."""

    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale).all() and np.all(self.scale) and np.isfinite(self.offset).all()):
            raise ConfigError(f"{self} cannot be inverted; expected finite numbers and no scale of zero.")

    def to_robot(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[..., n] to [..., n]."""
        return values * np.asarray(self.scale) + self.offset

    def to_environment(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[..., n] to [..., n]."""
        return (values - self.offset) / np.asarray(self.scale)


UNCHANGED = Affine()
INVERTED_GRIPPER = Affine(-1.0, 1.0)
"""0 open .. 1 closed there, 0 closed .. 1 open here, or the other way round."""


@dataclass(frozen=True)
class Entries:
    """Where the entries of some joints lie in an observation or an action.

    Attributes:
        joints: the robot's joint for each entry, in the environment's order and after the conversion; None for an
            entry that is no joint, which is ignored in a state and 0 in robot terms in an action.
        key: path of the vector with ``/`` between nested keys; empty where the action space is that vector itself.
        conversion: between the environment's units and the robot's.
    """

    joints: tuple[str | None, ...]
    key: str = ""
    conversion: Conversion = UNCHANGED


@dataclass(frozen=True)
class Picture:
    """Where the image of a camera lies: a path, the order of its axes, and whether it hangs upside down (by 180°)."""

    key: str
    layout: Literal["hwc", "chw"] = "hwc"
    is_rotated: bool = False


@dataclass(frozen=True)
class Layout:
    """How one kind of environment lays out what it shows and takes, in the words of one robot.

    Attributes:
        pictures: for every camera of the robot where its image is, None where the environment has none; the policy
            then sees that slot masked, or refuses if it needs it.
        state: where the joints of the state are.
        action: where the joints of the command go.
        prompt: the instruction, where the environment gives none.
        prompt_key: path of the instruction in the observation.
        uncommanded: joints of the robot that the environment takes no command for.
        is_clipped: actions are clipped to the bounds of the action space.
        rates: joints whose commands are velocities or steps, 0 to stand still, and no positions as those of the state;
            limits on positions do not apply to them.
    """

    pictures: Mapping[str, Picture | None]
    state: Sequence[Entries]
    action: Sequence[Entries]
    prompt: str = ""
    prompt_key: str | None = None
    uncommanded: tuple[str, ...] = ()
    is_clipped: bool = True
    rates: tuple[str, ...] = ()


class EnvironmentMapping:
    """What an environment shows as an agent's observation, and an agent's joint targets as the environment's action.

    Args:
        layout: where everything is; :mod:`pi0_control.control.adapters` has some.
        robot: the robot that the policy drives.
        observation_space, action_space: of one environment; the ``single_`` ones of a vector environment, whose
            observations and actions have one more leading axis.

    Raises:
        ConfigError: the three do not fit together; the message lists every difference and what there is.
    """

    def __init__(
        self, layout: Layout, robot: RobotSpec, observation_space: Space[Any], action_space: Space[Any]
    ) -> None:
        self.layout = layout
        self.robot = robot
        self.observation_space = observation_space
        self.action_space = action_space
        differences = [*self._camera_differences(), *self._state_differences(), *self._prompt_differences()]
        differences += self._action_differences()
        if differences:
            raise ConfigError(
                f"The mapping does not fit the environment and robot {robot.name!r}: {'; '.join(differences)}. "
                f"Available: observation {_describe(observation_space)}, action {_describe(action_space)}, joints "
                f"{list(robot.joint_names)}, cameras {list(robot.cameras)}."
            )

    def observation(self, observation: Any) -> dict[str, Any]:
        """An environment's observation in robot terms.

        Returns:
            ``images`` (uint8 [H, W, 3] by camera, without those the environment lacks), ``state`` (float32 [D]) and
            ``prompt``; all with a leading axis N if the observation is a vector environment's.

        Raises:
            ObservationError: a key is missing, or an entry is not as the observation space says.
        """
        return read_layout(observation, self.layout, self.robot)

    def action(self, positions: ArrayLike) -> Any:
        """The environment's action for joint targets [D] or [N, D]: an array, or a dict of them if its space is one."""
        targets = np.asarray(positions, np.float64)
        vectors = {entries.key: self._vector(entries, targets) for entries in self.layout.action}
        return _assemble(self.action_space, "", vectors)

    def _vector(self, entries: Entries, targets: NDArray[np.float64]) -> NDArray[Any]:
        values = write_entries(targets, entries, self.robot)
        space = _find(self.action_space, entries.key)
        if self.layout.is_clipped:
            values = np.clip(values, space.low, space.high)
        return values.astype(space.dtype)

    def _camera_differences(self) -> Iterator[str]:
        for name in sorted({*self.robot.cameras} ^ {*self.layout.pictures}):
            if name in self.layout.pictures:
                yield f"camera {name!r} is none of the robot's"
            else:
                yield f"camera {name!r} is not mapped, expected a picture, or None if the environment has none"
        for name, picture in self.layout.pictures.items():
            if picture is None:
                continue
            space = _find(self.observation_space, picture.key)
            if space is None:
                yield f"camera {name!r} is at {picture.key!r}, which does not exist"
            elif not _is_image(space, picture.layout):
                expected = "[H, W, 3]" if picture.layout == "hwc" else "[3, H, W]"
                yield f"camera {name!r} is {space} at {picture.key!r}, expected {expected} of uint8 or of floats 0 to 1"

    def _state_differences(self) -> Iterator[str]:
        yield from self._joint_differences("state", self.layout.state, ())
        for entries in self.layout.state:
            space = _find(self.observation_space, entries.key)
            if not isinstance(space, spaces.Box):
                yield f"the state reads {entries.key!r}, which is {space or 'missing'}, expected a Box"
                continue
            got = _converted_shape(entries.conversion.to_robot, space.shape)
            if got != (len(entries.joints),):
                yield (
                    f"the state reads {entries.key!r} of shape {list(space.shape)}, which gives {_width(got)}, "
                    f"expected {len(entries.joints)} for {list(entries.joints)}"
                )

    def _prompt_differences(self) -> Iterator[str]:
        key, constant = self.layout.prompt_key, self.layout.prompt
        if (key is None) == (not constant.strip()):
            yield f"the prompt is {constant!r} and its key {key!r}, expected one of the two"
        elif key is not None and not isinstance(space := _find(self.observation_space, key), spaces.Text):
            yield f"the prompt is at {key!r}, which is {space or 'missing'}, expected a Text"

    def _action_differences(self) -> Iterator[str]:
        yield from self._joint_differences("action", self.layout.action, self.layout.uncommanded)
        for name in sorted({*self.layout.rates} - {*self.robot.joint_names}):
            yield f"rate {name!r} is no joint of the robot"
        keys = [entries.key for entries in self.layout.action]
        for key in sorted({*dict(_leaves(self.action_space))} - {*keys}):
            yield f"the action gives nothing for {key or 'the action space'!r}"
        for entries in self.layout.action:
            space = _find(self.action_space, entries.key)
            if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
                yield f"the action goes to {entries.key!r}, which is {space or 'missing'}, expected a Box of floats"
                continue
            got = _converted_shape(entries.conversion.to_environment, (len(entries.joints),))
            if got != space.shape:
                yield (
                    f"the action gives {_width(got)} for {list(entries.joints)}, expected {list(space.shape)} of "
                    f"{entries.key or 'the action space'!r}"
                )
            elif self.layout.is_clipped:
                yield from self._home_differences(entries, space)

    def _joint_differences(self, what: str, parts: Sequence[Entries], uncommanded: tuple[str, ...]) -> Iterator[str]:
        """Every joint of the robot has to be mapped once."""
        mapped = [*(name for entries in parts for name in entries.joints if name is not None), *uncommanded]
        for name in self.robot.joint_names:
            if mapped.count(name) != 1:
                yield f"joint {name!r} is {mapped.count(name)} times in the {what}, expected once"
        for name in sorted({*mapped} - {*self.robot.joint_names}):
            yield f"joint {name!r} of the {what} is none of the robot's"

    def _home_differences(self, entries: Entries, space: spaces.Box) -> Iterator[str]:
        """Wrong units show in a rest position that the action space does not have."""
        homes = dict(zip(self.robot.joint_names, self.robot.home, strict=True))
        if any(name is not None and name not in homes for name in entries.joints):
            return
        values = entries.conversion.to_environment(np.array([homes.get(name or "", 0.0) for name in entries.joints]))
        for name, value, low, high in zip(entries.joints, values, space.low, space.high, strict=True):
            is_position = name is not None and name not in self.layout.rates
            if is_position and not low - 1e-6 <= value <= high + 1e-6:
                yield f"joint {name!r} rests at {value:.4g}, expected within the action space's [{low:.4g}, {high:.4g}]"


def read_layout(
    observation: Any, layout: Layout, robot: RobotSpec, may_lack_images: bool = False, prompt: str = ""
) -> dict[str, Any]:
    """What :meth:`EnvironmentMapping.observation` does.

    With ``may_lack_images`` missing ones are left out; ``prompt`` is the instruction of observations without one.
    """
    state = _state(observation, layout, robot)
    pictures = {name: picture for name, picture in layout.pictures.items() if picture is not None}
    if may_lack_images:
        pictures = {name: each for name, each in pictures.items() if _find(observation, each.key) is not None}
    images = {name: _image(_get(observation, picture.key), name, picture) for name, picture in pictures.items()}
    key, instruction = layout.prompt_key, prompt or layout.prompt
    if key is not None and not (prompt and _find(observation, key) is None):
        return {"images": images, "state": state, "prompt": _get(observation, key)}
    return {"images": images, "state": state, "prompt": instruction if state.ndim == 1 else [instruction] * len(state)}


def write_entries(targets: NDArray[np.float64], entries: Entries, robot: RobotSpec) -> NDArray[np.float64]:
    """The entries of an action for commands [..., D] of the robot, in the environment's units; nothing is clipped."""
    names = robot.joint_names
    padded = np.concatenate([targets, np.zeros((*targets.shape[:-1], 1))], axis=-1)
    columns = [names.index(name) if name is not None else len(names) for name in entries.joints]
    return entries.conversion.to_environment(padded[..., columns])


def _state(observation: Any, layout: Layout, robot: RobotSpec) -> NDArray[np.float32]:
    columns: dict[str, NDArray[np.float64]] = {}
    for entries in layout.state:
        values = _get(observation, entries.key)
        try:
            converted = entries.conversion.to_robot(np.asarray(values, np.float64))
            columns |= {name: converted[..., i] for i, name in enumerate(entries.joints) if name is not None}
        except (IndexError, TypeError, ValueError) as error:
            raise ObservationError(
                f"Entry {entries.key!r} of the observation is {values!r}; expected numbers for {list(entries.joints)}."
            ) from error
    return np.stack([columns[name] for name in robot.joint_names], axis=-1).astype(np.float32)


def _find(tree: Any, path: str) -> Any:
    """What is at a path in nested dicts (spaces, too), keys of which may hold ``/`` themselves; None if nothing."""
    if not path:
        return tree
    if not isinstance(tree, Mapping):
        return None
    keys = [*tree]  # whether a space has a key must not be asked with `in`, which asks whether it has a value
    if path in keys:
        return tree[path]
    cuts = [cut for cut, letter in enumerate(path) if letter == "/" and path[:cut] in keys]
    return next((found for cut in cuts if (found := _find(tree[path[:cut]], path[cut + 1 :])) is not None), None)


def _get(observation: Any, path: str) -> Any:
    found = _find(observation, path)
    if found is None:
        got = (
            [key for key, _ in _leaves(observation)] if isinstance(observation, Mapping) else type(observation).__name__
        )
        raise ObservationError(f"The observation is {got}; expected {path!r} in it.")
    return found


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{path}/{key}" if path else str(key))


def _describe(space: Any) -> dict[str, str]:
    return {
        path: f"{list(leaf.shape)} {leaf.dtype}" if isinstance(leaf, spaces.Box) else type(leaf).__name__
        for path, leaf in _leaves(space)
    }


def _assemble(space: Any, path: str, vectors: Mapping[str, NDArray[Any]]) -> Any:
    if not isinstance(space, Mapping):
        return vectors[path]
    return {key: _assemble(value, f"{path}/{key}" if path else key, vectors) for key, value in space.items()}


def _converted_shape(convert: Any, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape a conversion makes of this one; None if it cannot convert it."""
    try:
        return np.shape(convert(np.zeros(shape)))
    except (IndexError, ValueError):
        return None


def _width(shape: tuple[int, ...] | None) -> str:
    return "a shape its conversion does not take" if shape is None else f"shape {list(shape)}"


def _is_image(space: Any, layout: str) -> bool:
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or space.shape[2 if layout == "hwc" else 0] != 3:
        return False
    is_unit = np.issubdtype(space.dtype, np.floating) and space.low.min() >= 0 and space.high.max() <= 1
    return space.dtype == np.uint8 or bool(is_unit)


def _image(image: Any, name: str, picture: Picture) -> NDArray[np.uint8]:
    """Upright uint8 [..., H, W, 3] of what the environment gives."""
    image = np.asarray(image)
    if image.ndim < 3 or image.dtype.kind not in "uf":
        raise ObservationError(f"Image {name!r} has shape {list(image.shape)} of {image.dtype}; expected an RGB image.")
    if picture.layout == "chw":
        image = np.moveaxis(image, -3, -1)
    if picture.is_rotated:
        image = image[..., ::-1, ::-1, :]
    if image.dtype.kind == "f":
        if not (image.size and image.min() >= 0 and image.max() <= 1):
            raise ObservationError(f"Image {name!r} of floats leaves 0 to 1; expected that range.")
        image = np.rint(image * 255).astype(np.uint8)
    return np.ascontiguousarray(image)
