"""A policy that needs no weights, moves all the time, and fails as its prompt says."""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import ObservationError
from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, ChunkPrefix, Observation

ARM6 = RobotSpec.from_yaml("arm6")
LATE_S = 5.0


def sway(time_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """Where the arm should be at times [K], float32 [K, 7]: slow swings around home, the gripper in the middle."""
    swing = np.sin(2 * np.pi * 0.25 * time_s)[:, None] * [0.4, 0.1, 0.1, 0.4, 0.2, 0.4, 0.1]
    return (ARM6.home + swing - [0, 0, 0, 0, 0, 0, 0.5]).astype(np.float32)


class SwayingPolicy(HoldPolicy):
    """Sways by the stamp of the observation, so that chunks continue each other."""

    def __init__(self, horizon: int = 16, execution_horizon: int = 8) -> None:
        super().__init__(ARM6, horizon, execution_horizon)
        self.observations: list[Observation] = []
        self.seeds: list[int | None] = []

    def infer(
        self,
        observation: Observation,
        *,
        noise: NDArray[np.float32] | None = None,
        prefix: ChunkPrefix | None = None,
    ) -> ActionChunk:
        chunk = super().infer(observation)
        self.observations = [*self.observations[-9:], observation]
        if observation.prompt == "be late":
            threading.Event().wait(LATE_S)
        elif observation.prompt == "hang":
            threading.Event().wait()
        elif observation.prompt == "raise":
            raise RuntimeError("out of memory")
        elif observation.prompt == "refuse":
            raise ObservationError("the prompt is too long")
        steps = np.arange(self.horizon) * chunk.dt_s
        actions = sway(round(observation.stamp_s % 4.0, 6) + steps)
        if observation.prompt == "lose count":
            actions[0, 0] = np.nan
        return ActionChunk(actions, chunk.start_s, chunk.dt_s, chunk.timing_ms, chunk.prompt)

    def infer_batch(self, observations: Sequence[Observation], **_: object) -> list[ActionChunk]:
        return [self.infer(observation) for observation in observations]

    def reset(self, seed: int | None = None) -> None:
        self.seeds.append(seed)
