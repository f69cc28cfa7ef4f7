"""Real-time chunking, the bookkeeping: how late the next chunk will be, and what of the present one it continues.

From "Real-Time Execution of Action Chunking Flow Policies" (arXiv 2506.07339, Algorithm 1); what the policy does with
a prefix is the policy's affair.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from pi0_control.types import ChunkPrefix


class DelayForecast:
    """How many actions will be played while the next chunk is inferred: as many as in the worst of the last few.

    Only counts of actions really played are observed, so the time of a warm-up, in which nothing is played, is never
    among them, and one slow inference is forgotten after ``memory`` others.

    Args:
        first: the forecast while nothing was observed.
        memory: how many observations count.
    """

    def __init__(self, first: int, memory: int) -> None:
        self._first = first
        self._observed: deque[int] = deque(maxlen=memory)

    @property
    def delay(self) -> int:
        """The forecast, in control steps."""
        return max(self._observed, default=self._first)

    def observe(self, delay: int) -> None:
        """So many actions were played during an inference."""
        self._observed.append(delay)

    def reset(self) -> None:
        """Forget what was observed."""
        self._observed.clear()


def chunk_prefix(leftover: NDArray[np.float32], delay: int, end: int) -> ChunkPrefix | None:
    """The prefix of a chunk whose first ``delay`` actions are decided and which is free from step ``end`` on.

    Both are cut to what there is: ``0 <= delay <= end <= K``, so nothing is ever guided towards an action that does not
    exist. None where nothing is left.

    Args:
        leftover: float32 [K, D], what is not played yet.
        delay, end: as in :class:`ChunkPrefix`, before cutting.
    """
    if not len(leftover):
        return None
    delay = min(delay, len(leftover))
    return ChunkPrefix(leftover.copy(), delay, max(delay, min(end, len(leftover))))
