"""Recording: what a robot showed and was told, wherever it was written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Recording:
    """N moments of one robot, in order.

    Attributes:
        source: where it is from, in words.
        states: float32 [N, D], as recorded.
        actions: float32 [N, D'], the target that was set in each moment; None where none were recorded.
        episode: int64 [N], rising; a chunk of actions does not reach into the next episode.
        rate_hz: moments per second; None where nothing tells the control rate.
        state_names: of the D numbers; empty where they have none.
        action_names: of the D' numbers; empty where they have none.
        images: a few pictures by camera, RGB uint8 [H, W, 3]; none of a camera that cannot be read.
    """

    source: str
    states: NDArray[np.float32]
    actions: NDArray[np.float32] | None
    episode: NDArray[np.int64]
    rate_hz: float | None
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    images: Mapping[str, Sequence[NDArray[np.uint8]]] = field(default_factory=dict)

    def action_chunks(self, frames: NDArray[np.int64], horizon: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Actions [B, horizon, D'] from each of the moments [B] on, and which of them [B, horizon] there really are."""
        assert self.actions is not None
        steps = frames[:, None] + np.arange(horizon)
        there = np.minimum(steps, len(self.actions) - 1)
        return self.actions[there], (steps == there) & (self.episode[there] == self.episode[frames][:, None])
