"""Recorder: everything an agent sees and does, one file per episode, and :func:`replay`, which does it again.

A file is a NumPy ``.npz`` without pickles. ``about`` is JSON; every entry of the observation and the action has an
array over the steps under its path (``observation/state``, ``action``), images as PNGs one behind the other.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi0_control.control.agent import Pi0Agent
from pi0_control.errors import ConfigError, DatasetError, ObservationError
from pi0_control.files import write_numbered

VERSION = 1
Keys = tuple[str, ...]
"""Where an entry lies in nested dicts."""


@dataclass
class _Take:
    """The episode being recorded."""

    resets: list[tuple[int, int | None, list[bool] | None]]
    entries: dict[Keys, list[NDArray[Any]]] = field(default_factory=dict)
    shapes: dict[Keys, tuple[int, ...]] = field(default_factory=dict)
    timing_ms: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    steps: int = 0


class Recorder:
    """Stands in for an agent and records it; an episode lasts from one :meth:`reset` without a mask to the next.

    With a vector environment an episode is that of all its environments together, and the resets with a mask are part
    of it. A file appears whole or not at all, under the next free number; several may record into one folder.

    Args:
        agent: what to record; it is to be asked through the recorder only.
        folder: where the files go; made when the first one is written.
    """

    def __init__(self, agent: Pi0Agent, folder: str | Path) -> None:
        self.agent = agent
        self.folder = Path(folder)
        self._take: _Take | None = None
        self._next_seed = 0

    def __enter__(self) -> Self:
        """Usable in a ``with`` statement, which saves the episode under way however it ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save the episode under way."""
        self.save()

    def reset(self, seed: int | None = None, mask: ArrayLike | None = None) -> None:
        """As :meth:`Pi0Agent.reset`; without a mask, save the episode under way and begin another.

        An episode can be replayed from its seed only, so one that gets none has the one after the last.
        """
        if mask is None:
            self.save()
            seed = self._next_seed if seed is None else int(seed)
            self._next_seed = seed + 1
        self.agent.reset(seed, mask)
        if mask is None:
            self._take = _Take([(0, seed, None)])
        elif self._take is not None:
            self._take.resets.append((self._take.steps, seed, np.asarray(mask, np.bool_).tolist()))

    def get_action(self, observation: Mapping[str, Any]) -> Any:
        """As :meth:`Pi0Agent.get_action`; an observation that is refused, or whose inference fails, is not recorded.

        Raises:
            ObservationError: as the agent, and where an entry is neither numbers nor text, has no name of its own, or
                changes its shape within the episode.
        """
        if self._take is None:
            self.reset()
        assert self._take is not None
        seen = _entries(observation, "observation")
        _check_same(self._take, seen)
        action = self.agent.get_action(observation)
        done = _entries(action, "action")
        for name in ("status", "reason"):
            done[name,] = np.array([getattr(command, name) for command in self.agent.commands])
        for keys, value in {**seen, **done}.items():
            self._take.shapes.setdefault(keys, value.shape)
            self._take.entries.setdefault(keys, []).append(_encode(value) if _is_picture(value) else value)
        if self.agent.chunk_timing_ms is not None:
            self._take.timing_ms.append((self._take.steps, dict(self.agent.chunk_timing_ms)))
        self._take.steps += 1
        return action

    def save(self, **notes: Any) -> Path | None:
        """Write the episode under way; if that fails, it is kept and goes on.

        Args:
            notes: plain values kept with it, such as ``is_success``.

        Returns:
            Its file; None if nothing was done since the reset.
        """
        path = None
        if self._take is not None and self._take.steps:
            arrays = self._arrays(self._take, notes)
            path = write_numbered(self.folder, "episode_", ".npz", partial(_save_arrays, arrays))
        self._take = None
        return path

    def _arrays(self, take: _Take, notes: Mapping[str, Any]) -> dict[str, Any]:
        pictures = {
            keys: [len(png) for png in values]
            for keys, values in take.entries.items()
            if values[0].shape != take.shapes[keys]
        }
        about = {
            "version": VERSION,
            "robot": self.agent.policy.robot.to_dict(),
            "chunking": asdict(self.agent.chunking),
            "safety": self.agent.safety and asdict(self.agent.safety),
            "resets": take.resets,
            "timing_ms": take.timing_ms,
            "entries": [[keys, take.shapes[keys], pictures.get(keys)] for keys in take.entries],
            "notes": notes,
        }
        arrays = {
            "/".join(keys): np.concatenate(values) if keys in pictures else np.stack(values)
            for keys, values in take.entries.items()
        }
        return {"about": np.array(json.dumps(about, default=_plain)), **arrays}


@dataclass(frozen=True)
class Recording:
    """A recorded episode.

    Attributes:
        about: ``robot``, ``chunking``, ``safety``, ``resets`` (before which step, seed, mask), ``timing_ms`` of each
            inference (at which step, by stage), ``notes``.
        arrays: by path as in the file.
    """

    path: Path
    about: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def load(cls, path: str | Path) -> "Recording":
        """Read a file of a :class:`Recorder`.

        Raises:
            DatasetError: no such file, or it is not one.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as content:
                arrays = dict(content)
            about = json.loads(str(arrays.pop("about")))
        except FileNotFoundError as error:
            raise DatasetError(f"No recording {path}.") from error
        except (AttributeError, BadZipFile, EOFError, KeyError, OSError, TypeError, ValueError) as error:
            raise DatasetError(f"{path} is not a recording, or is damaged: {error}.") from error
        if about.get("version") != VERSION:
            raise DatasetError(f"Recording {path} has version {about.get('version')}; expected {VERSION}.")
        return cls(Path(path), about, arrays)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.arrays["status"])

    def steps(self) -> Iterator[tuple[Any, Any]]:
        """Observation and action of each step, as they were."""
        offsets = {tuple(keys): np.cumsum([0, *lengths]) for keys, _, lengths in self.about["entries"] if lengths}
        for step in range(len(self)):
            tree: dict[str, Any] = {}
            for keys, shape, lengths in self.about["entries"]:
                values = self.arrays["/".join(keys)]
                if lengths:
                    start, end = offsets[tuple(keys)][step : step + 2]
                    _put(tree, keys, _decode(values[start:end], shape))
                else:
                    _put(tree, keys, values[step].tolist() if values.dtype.kind == "U" else values[step, ...])
            yield tree["observation"], tree["action"]


def replay(path: str | Path, agent: Pi0Agent, *, must_match: bool = True) -> list[Any]:
    """Show an agent what was recorded.

    The same policy with the same chunking, safety and simulated latency answers bit for bit as it did then; not from an
    inference on that failed, such as a server's that was late, for the noise it had drawn is not drawn again.

    Args:
        must_match: whether to refuse another answer than the recorded one.

    Returns:
        The agent's action for each step.

    Raises:
        DatasetError: the file is not a recording, or an action is not the recorded one; says which.
        ConfigError: the agent drives another robot than the recorded one.
        ObservationError: the agent refuses an observation.
    """
    recording = Recording.load(path)
    robot = agent.policy.robot
    if recording.about["robot"] != robot.to_dict():
        raise ConfigError(f"{path} is of robot {recording.about['robot']['name']!r}; the agent drives {robot.name!r}.")
    actions = []
    for step, (observation, expected) in enumerate(recording.steps()):
        for at, seed, mask in recording.about["resets"]:
            if at == step:
                agent.reset(seed, mask)
        actions.append(agent.get_action(observation))
        if must_match and not _equal(actions[-1], expected):
            raise DatasetError(
                f"At step {step} of {path} the agent's action is not the recorded one; expected the same policy and "
                f"latency as then, and {recording.about['chunking']} with safety {recording.about['safety']}; got "
                f"{asdict(agent.chunking)} with safety {agent.safety and asdict(agent.safety)}."
            )
    return actions


def _entries(tree: Any, root: str) -> dict[Keys, NDArray[Any]]:
    """The leaves of nested dicts by where they lie, each of which has a path of its own."""
    entries = dict(_leaves(tree, (root,)))
    if wrong := [key for keys in entries for key in keys if not isinstance(key, str)]:
        raise ObservationError(f"The {root} has the keys {wrong}; expected text.")
    paths = ["/".join(keys) for keys in entries]
    if len({*paths}) < len(paths):
        raise ObservationError(f"Two entries of the {root} have one path, among {paths}; expected one each.")
    return entries


def _leaves(tree: Any, keys: Keys) -> Iterator[tuple[Keys, NDArray[Any]]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*keys, key))
        return
    try:
        value = np.array(tree)
    except ValueError:
        value = np.array(None)
    if value.dtype.kind == "O" and value.size and all(isinstance(text, str) for text in value.flat):
        value = value.astype(np.str_)
    if value.dtype.kind not in "biufU":
        raise ObservationError(f"Entry {'/'.join(map(str, keys))!r} is {tree!r}; expected numbers or text.")
    yield keys, value


def _plain(value: Any) -> Any:
    """For JSON, which knows no NumPy."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _check_same(take: _Take, seen: Mapping[Keys, NDArray[Any]]) -> None:
    """Entries keep shape and type within an episode, or they could not be stacked as they were."""
    if not take.steps:
        return
    first = {keys: _form(take.shapes[keys], values[0]) for keys, values in take.entries.items()}
    expected = {keys: form for keys, form in first.items() if keys[0] == "observation"}
    got = {keys: _form(value.shape, value) for keys, value in seen.items()}
    if got != expected:
        differing = sorted("/".join(keys) for keys, _ in got.items() ^ expected.items())
        raise ObservationError(f"Entries {sorted({*differing})} are not as in the episode's first observation.")


def _form(shape: tuple[int, ...], value: NDArray[Any]) -> tuple[Any, ...]:
    return shape, value.dtype.kind if value.dtype.kind == "U" else value.dtype.str


def _is_picture(value: NDArray[Any]) -> bool:
    return value.dtype == np.uint8 and value.ndim >= 3 and value.size > 0


def _encode(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Any uint8 [..., W, 3] or [..., W] as a PNG, uint8 [n]."""
    width = picture.shape[-2:] if picture.shape[-1] == 3 else picture.shape[-1:]
    return cv2.imencode(".png", picture.reshape(-1, *width))[1].ravel()


def _decode(png: NDArray[np.uint8], shape: list[int]) -> NDArray[np.uint8]:
    picture = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise DatasetError("A picture of the recording is damaged.")
    return np.asarray(picture, np.uint8).reshape(shape)


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    *path, last = keys
    for key in path:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _equal(one: Any, other: Any) -> bool:
    ours, theirs = dict(_leaves(one, ())), dict(_leaves(other, ()))
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[keys].dtype and np.array_equal(value, theirs[keys]) for keys, value in ours.items()
    )


def _save_arrays(arrays: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # by its name NumPy would give it another
        np.savez_compressed(file, **arrays)
