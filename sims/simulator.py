"""What plays episodes in one process: an environment, an actor, the control in between, and the film of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi0_control.control import ChunkingConfig, Pi0Agent, SafetyConfig
from pi0_control.control.chunking import trained_delay
from pi0_control.errors import ConfigError
from pi0_control.policy import Pi0Policy, Policy
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, ChunkPrefix, Observation
from sims.controls import deprive, instruct
from sims.episode import EXPERT, Actor, EpisodeResult, ExpertActor, RandomActor, Setting, run_episode
from sims.tabletop_env import TabletopEnv
from sims.video import Film, write_video

Noise = NDArray[np.float32] | None
Prefix = ChunkPrefix | None
Ask = Callable[[Observation, Noise, Prefix], ActionChunk]
"""Infers one chunk, here or in another process."""


@dataclass(frozen=True)
class Job:
    """One episode to play.

    Attributes:
        video: where to film it, if at all.
        only_failure: keep the video only of a failure.
    """

    setting: Setting
    seed: int
    video: Path | None = None
    only_failure: bool = False


@dataclass(frozen=True)
class PolicyShape:
    """What an agent must know of a policy that lives elsewhere.

    Attributes:
        noise: shape of the noise that a chunk starts from; None where it takes none.
        trained_delay: as :func:`pi0_control.control.chunking.trained_delay` tells.
    """

    horizon: int
    execution_horizon: int
    noise: tuple[int, int] | None
    trained_delay: int | None

    @classmethod
    def of(cls, policy: Policy) -> "PolicyShape":
        """The shape of a policy.

        Raises:
            ConfigError: one that moves joints by velocities or steps, which the simulated robot does not take.
        """
        if policy.rates:
            raise ConfigError(
                f"The policy moves {list(policy.rates)} by velocities or steps; expected joint positions throughout, "
                "which are what the simulated robot takes."
            )
        noise = (policy.horizon, policy.config.model.action_dim) if isinstance(policy, Pi0Policy) else None
        return cls(policy.horizon, policy.execution_horizon, noise, trained_delay(policy))


class EpisodePolicy:
    """A policy as one episode knows it: its noise follows from the episode's seed, whoever else is inferred with it."""

    rates: tuple[str, ...] = ()

    def __init__(self, robot: RobotSpec, shape: PolicyShape, ask: Ask) -> None:
        self.robot = robot
        self.horizon, self.execution_horizon = shape.horizon, shape.execution_horizon
        self._noise_shape, self._ask = shape.noise, ask
        self._rng = np.random.default_rng(0)

    def check(self, observation: Observation) -> None:
        """Left to the policy itself when it infers."""

    def infer(self, observation: Observation, *, noise: Noise = None, prefix: Prefix = None) -> ActionChunk:
        """The chunk for one observation from the episode's next noise."""
        if noise is None and self._noise_shape is not None:
            noise = self._rng.standard_normal(self._noise_shape, np.float32)
        return self._ask(observation, noise, prefix)

    def infer_batch(
        self,
        observations: Sequence[Observation],
        *,
        noise: Noise = None,
        prefixes: Sequence[Prefix] | None = None,
    ) -> list[ActionChunk]:
        """One chunk per observation, one after another."""
        rows = zip(observations, prefixes or [None] * len(observations), strict=True)
        return [self.infer(observation, noise=noise, prefix=prefix) for observation, prefix in rows]

    def reset(self, seed: int | None = None) -> None:
        """Restart the noise."""
        self._rng = np.random.default_rng(seed)


class BlindEnv(TabletopEnv):
    """Renders no camera: ten times faster, for actors that look at no image."""

    def observe(self) -> dict[str, Any]:
        """The observation of this moment, without images."""
        assert self.goal is not None
        return {"images": {}, "state": self.world.state, "prompt": self.goal.prompt}


class Simulator:
    """Plays episodes one at a time; keeps the environment from one to the next where it fits."""

    def __init__(self) -> None:
        self._env: TabletopEnv | None = None
        self._made_for: tuple[Any, ...] = ()

    def play(self, job: Job, shape: PolicyShape | None = None, ask: Ask | None = None) -> EpisodeResult:
        """Play one episode; a learned policy is known by its ``shape`` and inferred by ``ask``."""
        setting = job.setting
        is_unseen = setting.is_scripted or setting.is_blind
        env = self._env_for(setting, is_blind=is_unseen and job.video is None)
        goal, prompt = instruct(env, setting.instruction, job.seed)
        actor = _actor(setting, env, shape, ask)
        perceive = partial(deprive, prompt=prompt, masked_cameras=setting.masked_cameras)
        film = Film() if job.video is not None else None
        keep = (lambda seen: film.append(seen["images"])) if film is not None else None
        result = run_episode(env, actor, job.seed, goal, keep, perceive)
        result = replace(result, prompt=prompt or result.prompt)
        if job.video is None or film is None or (job.only_failure and result.is_success):
            return result
        notes = ", ".join(filter(None, (setting.control, setting.play.words)))
        caption = f"{result.prompt}  [{notes}]" if notes else result.prompt
        write_video(job.video, film, caption, result.is_success, env.metadata["render_fps"])
        return replace(result, video=job.video)

    def close(self) -> None:
        """Free the environment."""
        if self._env is not None:
            self._env.close()
        self._env, self._made_for = None, ()

    def _env_for(self, setting: Setting, is_blind: bool) -> TabletopEnv:
        wanted = (is_blind, setting.task, setting.render_mode, setting.suite)
        if self._env is None or self._made_for != wanted:
            self.close()
            self._env = (BlindEnv if is_blind else TabletopEnv)(*wanted[1:])
            self._made_for = wanted
        return self._env


def _actor(setting: Setting, env: TabletopEnv, shape: PolicyShape | None, ask: Ask | None) -> Actor:
    if setting.is_scripted:
        return (ExpertActor if setting.policy == EXPERT else RandomActor)(env)
    assert shape is not None
    assert ask is not None
    play = setting.play
    chunking = ChunkingConfig(play.strategy, play.execution_horizon)
    chunking = chunking.for_policy(shape.horizon, shape.execution_horizon, shape.trained_delay)
    safety = SafetyConfig() if play.is_guarded else None
    policy = EpisodePolicy(env.robot, shape, ask)
    return Pi0Agent(policy, chunking=chunking, latency_steps=play.latency_steps, safety=safety)
