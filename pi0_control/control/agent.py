"""Pi0Agent: a policy behind ``reset()`` and ``get_action(observation)``, for one Gymnasium environment or many."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi0_control.control.chunking import ChunkPlayer
from pi0_control.errors import ConfigError, ObservationError
from pi0_control.policy import Pi0Policy, Policy
from pi0_control.robot import RobotSpec
from pi0_control.types import Observation

OBSERVATION_KEYS = ("images", "state", "prompt")


class Pi0Agent:
    """Acts at every control step; asks the policy for a chunk when the one it plays is used up or the prompt changes.

    Observations come straight from the environment: a dict with ``images`` (uint8 [H, W, 3] by camera), ``state``
    ([D]) and ``prompt``. From a vector environment every entry has a leading axis N (``prompt`` is a sequence of N
    texts) and so has the action; sub-environments due for a new chunk are inferred in one batch. The number of
    environments may change at :meth:`reset` only.

    With Gymnasium's vector autoreset, tell :meth:`reset` which sub-environments begin an episode with the observation
    just returned. In its default mode NEXT_STEP that is one step after the step that ended episodes: call
    ``agent.reset(mask=ended)`` with the ``terminated | truncated`` of the step before, and ``reset(mask=terminated |
    truncated)`` of the same step in mode SAME_STEP.

    Args:
        policy: what to play.
        execution_horizon: actions to play of each chunk before the next; the policy's recommendation if None.

    Raises:
        ConfigError: an execution horizon outside 1 .. the policy's horizon.

    Attributes:
        chunk_timing_ms: what inference cost in the last ``get_action`` by stage [ms]; None where it needed none.
    """

    def __init__(self, policy: Policy, execution_horizon: int | None = None) -> None:
        horizon = policy.execution_horizon if execution_horizon is None else execution_horizon
        if not 1 <= horizon <= policy.horizon:
            raise ConfigError(f"execution_horizon is {horizon}; expected 1 to {policy.horizon}, the policy's horizon.")
        self.policy = policy
        self.execution_horizon = horizon
        self.chunk_timing_ms: Mapping[str, float] | None = None
        self._players: list[ChunkPlayer] = []
        self._prompts: list[str] = []
        self._step = 0

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        robot: RobotSpec | None = None,
        execution_horizon: int | None = None,
    ) -> "Pi0Agent":
        """An agent with a bundled policy or one from a directory; arguments and errors as for :class:`Pi0Policy`."""
        return cls(Pi0Policy.from_pretrained(name, device, dtype, robot), execution_horizon)

    def reset(self, seed: int | None = None, mask: ArrayLike | None = None) -> None:
        """Start an episode: drop the chunks, so that the next action comes from a new one.

        Args:
            seed: restarts the policy's noise; without it the noise runs on.
            mask: bool [N], the sub-environments that start anew; all if None.

        Raises:
            ConfigError: a mask of another length than the environments played so far.
        """
        self.policy.reset(seed)
        self.chunk_timing_ms = None
        if mask is None:
            self._players, self._prompts, self._step = [], [], 0
            return
        chosen = np.asarray(mask, np.bool_)
        if self._players and chosen.shape != (len(self._players),):
            raise ConfigError(f"The reset mask has shape {list(chosen.shape)}; expected [{len(self._players)}].")
        for player, is_reset in zip(self._players, chosen, strict=False):
            if is_reset:
                player.reset()

    def get_action(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Joint targets for the next control step.

        Returns:
            float32 [D], or [N, D] for a vector observation, in the robot's units.

        Raises:
            ObservationError: a key, camera or entry is missing or not as expected; nothing is played then.
        """
        if not isinstance(observation, Mapping):
            raise ObservationError(
                f"The observation is {type(observation).__name__}; expected a dict with {list(OBSERVATION_KEYS)}, "
                "which env.reset() and env.step() return first."
            )
        missing = [key for key in OBSERVATION_KEYS if key not in observation]
        if missing:
            raise ObservationError(f"The observation has {sorted(observation)} and lacks {missing}.")
        is_vector = len(_shape(observation["state"])) > 1
        now_s = self._step * self.policy.robot.dt_s
        rows = _split(observation, now_s) if is_vector else [_single(observation, now_s)]
        actions = self._act(rows, now_s)
        self._step += 1
        return actions if is_vector else actions[0]

    def _act(self, rows: Sequence[Observation], now_s: float) -> NDArray[np.float32]:
        players = self._players or [ChunkPlayer(self.execution_horizon) for _ in rows]
        if len(rows) != len(players):
            raise ObservationError(f"Got {len(rows)} observations; expected {len(players)} as since the reset.")
        for row in rows:
            self.policy.check(row)
        prompts = [row.prompt for row in rows]
        due = [
            index
            for index, (prompt, player, before) in enumerate(
                zip(prompts, players, self._prompts or prompts, strict=True)
            )
            if player.needs_chunk(now_s) or prompt != before
        ]
        chunks = self.policy.infer_batch([rows[index] for index in due]) if due else []
        for index, chunk in zip(due, chunks, strict=True):
            players[index].load(chunk)
        self._players, self._prompts = players, prompts
        self.chunk_timing_ms = chunks[0].timing_ms if chunks else None
        actions = [player.action(now_s) for player in players]
        idle = [index for index, action in enumerate(actions) if action is None]
        if idle:
            raise ObservationError(
                f"No action is due now for environments {idle}; expected the policy's chunk to start at the "
                "observation's stamp."
            )
        return np.array(actions, np.float32)


def _single(observation: Mapping[str, Any], now_s: float) -> Observation:
    return Observation(_images(observation), observation["state"], _text(observation["prompt"]), now_s)


def _split(observation: Mapping[str, Any], now_s: float) -> list[Observation]:
    """One observation per sub-environment."""
    images, states, prompts = _images(observation), observation["state"], observation["prompt"]
    if isinstance(prompts, str | bytes) or len(_shape(prompts)) != 1:
        raise ObservationError(
            f"The prompt of {len(states)} environments is {prompts!r}; expected a sequence of texts."
        )
    lengths = {name: _shape(entry)[:1] for name, entry in {"state": states, "prompt": prompts, **images}.items()}
    if len(set(lengths.values())) != 1:
        raise ObservationError(f"The entries of a vector observation have leading axes {lengths}; expected equal ones.")
    return [
        Observation({name: image[row] for name, image in images.items()}, states[row], _text(prompts[row]), now_s)
        for row in range(len(states))
    ]


def _shape(entry: Any) -> tuple[int, ...]:
    try:
        return np.shape(entry)
    except ValueError as error:
        raise ObservationError("An entry of the observation is ragged; expected an array.") from error


def _images(observation: Mapping[str, Any]) -> Mapping[str, NDArray[np.uint8]]:
    images = observation["images"]
    if not isinstance(images, Mapping):
        raise ObservationError(f"The observation's images are {type(images).__name__}; expected a dict by camera name.")
    return images


def _text(prompt: Any) -> Any:
    """A prompt as ``str`` where it is one in a NumPy wrapping; the policy judges the rest."""
    return prompt.item() if isinstance(prompt, np.ndarray) and prompt.ndim == 0 else prompt
