"""A policy whose chunks can be told apart, and what an environment shows it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, Observation

ARM6 = RobotSpec.from_yaml("arm6")


class CountingPolicy(HoldPolicy):
    """Action i of a chunk is the state plus i; remembers what it was asked."""

    def __init__(self, horizon: int = 6, execution_horizon: int = 3) -> None:
        super().__init__(ARM6, horizon, execution_horizon)
        self.batches: list[list[Observation]] = []
        self.seeds: list[int | None] = []

    def infer_batch(
        self, observations: Sequence[Observation], *, noise: NDArray[np.float32] | None = None
    ) -> list[ActionChunk]:
        self.batches.append(list(observations))
        steps = np.arange(self.horizon, dtype=np.float32)[:, None]
        return [
            ActionChunk(chunk.actions + steps, chunk.start_s, chunk.dt_s, {"prefix": 1.0, "denoise": 2.0})
            for chunk in super().infer_batch(observations)
        ]

    def reset(self, seed: int | None = None) -> None:
        self.seeds.append(seed)


def observe(level: float = 0.0, prompt: Any = "touch the red block") -> dict[str, Any]:
    images = {name: np.zeros((8, 8, 3), np.uint8) for name in ARM6.cameras}
    return {"images": images, "state": np.full(7, level, np.float32), "prompt": prompt}


def observe_many(levels: Sequence[float], prompts: Any = None) -> dict[str, Any]:
    images = {name: np.zeros((len(levels), 8, 8, 3), np.uint8) for name in ARM6.cameras}
    states = np.repeat(np.array(levels, np.float32)[:, None], 7, axis=1)
    return {"images": images, "state": states, "prompt": prompts or ("touch the red block",) * len(levels)}
