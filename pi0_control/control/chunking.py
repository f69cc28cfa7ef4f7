"""Playing chunks: which action is due now, when to ask for the next chunk, when a chunk has expired.

No clock is read here; every question comes with the time ``now_s`` on the clock of the observations [s].
"""

import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import ConfigError
from pi0_control.types import ActionChunk

TOLERANCE = 1e-6  # of a control step, against rounding of times


class ChunkPlayer:
    """Plays one chunk at a time by its time stamps.

    Action ``i`` is due from ``start_s + i * dt_s`` until the next one is. So a chunk that arrives late starts in its
    middle, at the action meant for now, and what is past is dropped.

    Args:
        execution_horizon: number of control steps after which a new chunk is wanted.

    Raises:
        ConfigError: an execution horizon below one.
    """

    def __init__(self, execution_horizon: int) -> None:
        if execution_horizon < 1:
            raise ConfigError(f"execution_horizon is {execution_horizon}; expected one or more.")
        self.execution_horizon = execution_horizon
        self._chunk: ActionChunk | None = None

    def reset(self) -> None:
        """Forget the chunk."""
        self._chunk = None

    def load(self, chunk: ActionChunk) -> None:
        """Play this chunk from now on; the rest of the one before is dropped."""
        self._chunk = chunk

    def needs_chunk(self, now_s: float) -> bool:
        """True without a chunk, and once ``execution_horizon`` steps of it are over or it has expired."""
        if self._chunk is None:
            return True
        return self._step(self._chunk, now_s) >= min(self.execution_horizon, self._chunk.horizon)

    def has_expired(self, now_s: float) -> bool:
        """True once the last action of the chunk is over, so nothing is due any more."""
        return self._chunk is not None and self._step(self._chunk, now_s) >= self._chunk.horizon

    def action(self, now_s: float) -> NDArray[np.float32] | None:
        """The action due now, float32 [D]; None without a chunk, before it starts and after it has expired."""
        if self._chunk is None:
            return None
        step = self._step(self._chunk, now_s)
        return self._chunk.actions[step].copy() if 0 <= step < self._chunk.horizon else None

    @staticmethod
    def _step(chunk: ActionChunk, now_s: float) -> int:
        return int(np.floor((now_s - chunk.start_s) / chunk.dt_s + TOLERANCE))
