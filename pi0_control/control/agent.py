"""Pi0Agent: a policy behind ``reset()`` and ``get_action(observation)``, for one Gymnasium environment or many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi0_control.control.chunking import ChunkingConfig, ChunkPlayer, trained_delay
from pi0_control.control.mapping import EnvironmentMapping
from pi0_control.control.safety import Safety, SafetyConfig
from pi0_control.errors import ConfigError, ObservationError
from pi0_control.policy import Pi0Policy, Policy
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, Command, CommandStatus, Observation

OBSERVATION_KEYS = ("images", "state", "prompt")
Latency = int | Sequence[int] | Callable[[np.random.Generator], int]
"""Steps an inference takes: always so many, one of these at random, or as the function draws."""


class Pi0Agent:
    """Acts at every control step; asks the policy for a chunk when the chunking wants one.

    Observations come straight from the environment: a dict with ``images`` (uint8 [H, W, 3] by camera), ``state``
    ([D]) and ``prompt``; an environment that shows or takes something else needs a mapping. From a vector environment
    every entry has a leading axis N (``prompt`` is a sequence of N texts) and so has the action; sub-environments due
    for a new chunk are inferred in one batch. The number of environments may change at :meth:`reset` only.

    With Gymnasium's vector autoreset, tell :meth:`reset` which sub-environments begin an episode with the observation
    just returned. In its default mode NEXT_STEP that is one step after the step that ended episodes: call
    ``agent.reset(mask=ended)`` with the ``terminated | truncated`` of the step before, and ``reset(mask=terminated |
    truncated)`` of the same step in mode SAME_STEP.

    Args:
        policy: what to play.
        execution_horizon: actions to play of each chunk before the next; that of ``chunking`` if None.
        chunking: how chunks are played; with ``interpolation`` N the agent acts N times per control step of the robot.
        latency_steps: simulates slow inference: the chunk inferred from an observation is there so many
            ``get_action`` later. Draws follow from the seed of :meth:`reset`.
        mapping: from the environment's observations and to its actions, where they are not the robot's.
        safety: every action passes a :class:`Safety` of its environment; none does if None, and the policy's actions
            are returned as they are.

    Raises:
        ConfigError: an execution horizon outside 1 .. the policy's horizon, a strategy by which the policy cannot
            continue chunks, a latency that is not 0 or more, a mapping for another robot than the policy's or other
            ``rates``, or safety for a camera that there is not.

    Attributes:
        chunk_timing_ms: what inference cost in the last ``get_action`` by stage [ms]; None where it needed none.
        commands: one per environment, the last ones: status, and the reason where the policy's action was not due or
            not allowed. Where none is due, the robot stands where it was commanded to last, so that it neither sinks
            nor lets go of what it holds, and at the measured state before any command; with safety, see there.
        seam_jumps: one per environment, float32 [D] where in the last ``get_action`` a chunk took over from another:
            how far apart the two were; None elsewhere.
        players: one per environment, to read ``last_delay``.
    """

    def __init__(
        self,
        policy: Policy,
        execution_horizon: int | None = None,
        chunking: ChunkingConfig | None = None,
        latency_steps: Latency = 0,
        mapping: EnvironmentMapping | None = None,
        safety: SafetyConfig | None = None,
    ) -> None:
        if mapping is not None and mapping.robot != policy.robot:
            raise ConfigError(
                f"The mapping is for robot {mapping.robot.name!r} and the policy drives {policy.robot.name!r}; "
                "expected one made with the policy's robot."
            )
        if mapping is not None and set(mapping.layout.rates) != set(policy.rates):
            raise ConfigError(
                f"The policy moves {list(policy.rates)} by velocities or steps, and the environment takes "
                f"{list(mapping.layout.rates)} so; expected the same."
            )
        if safety is not None:
            Safety(policy.robot, safety, rates=policy.rates)  # refused now, if at all
        chunking = chunking or ChunkingConfig()
        if execution_horizon is not None:
            chunking = replace(chunking, execution_horizon=execution_horizon)
        self.policy = policy
        self.mapping = mapping
        self.chunking = chunking.for_policy(policy.horizon, policy.execution_horizon, trained_delay(policy))
        self.safety = safety
        self.players: list[ChunkPlayer] = []
        self.commands: list[Command] = []
        self.seam_jumps: list[NDArray[np.float32] | None] = []
        self.chunk_timing_ms: Mapping[str, float] | None = None
        self._guards: list[Safety] = []
        self._stands: dict[int, NDArray[np.float32]] = {}  # by environment: where it was commanded to last
        self._draw = _latency(latency_steps)
        self._rng = np.random.default_rng(0)
        self._arriving: dict[int, tuple[int, ActionChunk]] = {}  # by environment: at which step its chunk is there
        self._step = 0

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        robot: RobotSpec | None = None,
        execution_horizon: int | None = None,
        chunking: ChunkingConfig | None = None,
    ) -> "Pi0Agent":
        """An agent with a bundled policy or one from a directory; arguments and errors as for :class:`Pi0Policy`.

        With the strategy ``rtc_trained`` the policy continues chunks as it was trained to.
        """
        rtc = None if chunking is None else chunking.rtc
        return cls(Pi0Policy.from_pretrained(name, device, dtype, robot, rtc), execution_horizon, chunking)

    def reset(self, seed: int | None = None, mask: ArrayLike | None = None) -> None:
        """Start an episode: drop the chunks, so that the next action comes from a new one.

        Args:
            seed: restarts the policy's noise and the draws of the latency; without it they run on.
            mask: bool [N], the sub-environments that start anew; all if None.

        Raises:
            ConfigError: a mask that is not boolean, or of another length than the environments played so far.
        """
        chosen = None if mask is None else self._chosen(mask)
        self.policy.reset(seed)
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.chunk_timing_ms = None
        if chosen is None:
            self.players, self._guards, self._arriving, self._stands, self._step = [], [], {}, {}, 0
            self.commands, self.seam_jumps = [], []
            return
        for index in np.flatnonzero(chosen[: len(self.players)]):
            self.players[index].reset()
            for guard in self._guards[index : index + 1]:
                guard.reset()
            self._arriving.pop(int(index), None)
            self._stands.pop(int(index), None)

    def _chosen(self, mask: ArrayLike) -> NDArray[np.bool_]:
        """The sub-environments [N] of a reset mask."""
        chosen = np.asarray(mask)
        if chosen.dtype != np.bool_:
            raise ConfigError(f"The reset mask is {mask!r}; expected True or False for each environment.")
        if self.players and chosen.shape != (len(self.players),):
            raise ConfigError(f"The reset mask has shape {list(chosen.shape)}; expected [{len(self.players)}].")
        return chosen

    def get_action(self, observation: Mapping[str, Any]) -> Any:
        """Joint targets for the next control step.

        Returns:
            float32 [D], or [N, D] for a vector observation, in the robot's units: the positions of :attr:`commands`.
            With a mapping, what its environment takes.

        Raises:
            ObservationError: a key, camera or entry is missing or not as expected; nothing is played then.
        """
        if self.mapping is not None:
            observation = self.mapping.observation(observation)
        if not isinstance(observation, Mapping):
            raise ObservationError(
                f"The observation is {type(observation).__name__}; expected a dict with {list(OBSERVATION_KEYS)}, "
                "which env.reset() and env.step() return first."
            )
        missing = [key for key in OBSERVATION_KEYS if key not in observation]
        if missing:
            raise ObservationError(f"The observation has {sorted(observation)} and lacks {missing}.")
        is_vector = len(_shape(observation["state"])) > 1
        now_s = self._step * self.policy.robot.dt_s / self.chunking.interpolation
        rows = _split(observation, now_s) if is_vector else [_single(observation, now_s)]
        actions = self._act(rows, now_s)
        self._step += 1
        actions = actions if is_vector else actions[0]
        return actions if self.mapping is None else self.mapping.action(actions)

    def _act(self, rows: Sequence[Observation], now_s: float) -> NDArray[np.float32]:
        players = self.players or [ChunkPlayer(self.chunking) for _ in rows]
        if len(rows) != len(players):
            raise ObservationError(f"Got {len(rows)} observations; expected {len(players)} as since the reset.")
        self._check(rows)
        arrived = {index: self._arriving.pop(index)[1] for index in [*self._arriving] if self._is_here(index)}
        for index, chunk in arrived.items():
            players[index].load(chunk, now_s)
        due = [index for index, row in enumerate(rows) if players[index].wants_chunk(now_s, row.prompt)]
        chunks = self._infer({index: rows[index] for index in due}, players, now_s) if due else []
        for index, chunk in zip(due, chunks, strict=True):
            if latency := self._draw(self._rng):
                self._arriving[index] = self._step + latency, chunk
            else:
                arrived[index] = chunk
                players[index].load(chunk, now_s)
        self.players = players
        self.chunk_timing_ms = chunks[0].timing_ms if chunks else None
        self.seam_jumps = [player.last_seam_jump if i in arrived else None for i, player in enumerate(players)]
        self.commands = self._command(rows, now_s)
        self._stands = {index: command.positions for index, command in enumerate(self.commands)}
        return np.array([command.positions for command in self.commands], np.float32)

    def _check(self, rows: Sequence[Observation]) -> None:
        """Raise ObservationError, which says of which environment if there are several, as the policy does."""
        for index, row in enumerate(rows):
            try:
                self.policy.check(row)
            except ObservationError as error:
                if len(rows) == 1:
                    raise
                raise ObservationError(f"Environment {index} of {len(rows)}: {error}") from error

    def _is_here(self, index: int) -> bool:
        """Whether the chunk on its way to this environment has arrived by now."""
        return self._arriving[index][0] <= self._step

    def _command(self, rows: Sequence[Observation], now_s: float) -> list[Command]:
        """What every environment is told now."""
        actions = [player.action(now_s) for player in self.players]
        reasons = [player.reason for player in self.players]
        if self.safety is None:
            poses = [self._stands.get(index, row.state) for index, row in enumerate(rows)]
            return [
                self._hold(pose, now_s, reason) if action is None else Command(action, now_s, "tracking", reason)
                for pose, action, reason in zip(poses, actions, reasons, strict=True)
            ]
        self._guards = self._guards or [Safety(self.policy.robot, self.safety, rates=self.policy.rates) for _ in rows]
        ages_s = dict.fromkeys(self._guards[0].inputs, 0.0)  # all of one moment, which is now
        return [
            guard.check(now_s, action, row.state, ages_s, reason=reason)
            or self._hold(row.state, now_s, guard.reason, "fault" if guard.fault else "holding")
            for guard, row, action, reason in zip(self._guards, rows, actions, reasons, strict=True)
        ]

    def _hold(self, pose: ArrayLike, now_s: float, reason: str, status: CommandStatus = "holding") -> Command:
        """Stand still at a pose [D]: there, and at 0 where commands are velocities or steps."""
        is_rate = np.isin(self.policy.robot.joint_names, self.policy.rates)
        return Command(np.where(is_rate, np.float32(0), np.asarray(pose, np.float32)), now_s, status, reason)

    def _infer(
        self, rows: Mapping[int, Observation], players: Sequence[ChunkPlayer], now_s: float
    ) -> list[ActionChunk]:
        """The chunks of the environments that want one, in one batch."""
        prefixes = [players[index].begin(now_s, row) for index, row in rows.items()]
        infer = (
            partial(self.policy.infer_batch, prefixes=prefixes) if self.chunking.has_prefix else self.policy.infer_batch
        )
        try:
            chunks = infer(list(rows.values()))
            late = [index for index, chunk in zip(rows, chunks, strict=True) if chunk.start_s != rows[index].stamp_s]
            if late:
                raise ObservationError(
                    f"No action is due now for environments {late}; expected the policy's chunk to start at the "
                    "observation's stamp."
                )
        except BaseException:  # whatever it was, no inference is under way any more
            for index in rows:
                players[index].abandon()
            raise
        return chunks


def _latency(steps: Latency) -> Callable[[np.random.Generator], int]:
    """What draws the steps an inference takes."""
    if callable(steps):
        return steps
    choices = [steps] if isinstance(steps, int | np.integer) else list(steps)
    if not choices or min(choices) < 0:
        raise ConfigError(f"latency_steps is {steps!r}; expected 0 or more, a sequence of such, or what draws them.")
    return lambda rng: int(rng.choice(choices))


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
