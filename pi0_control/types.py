"""The records that flow between rooms: Observation -> ActionChunk -> Command."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CommandStatus = Literal["tracking", "holding", "fault"]


@dataclass(frozen=True)
class Observation:
    """What the robot sees and feels at one moment.

    Attributes:
        images: RGB uint8 [H, W, 3] by camera name; sizes may differ between cameras.
        state: float32 [D], one entry per joint of the robot, in its units ([rad], gripper 0 closed .. 1 open).
        prompt: the instruction in plain words.
        stamp_s: when it was taken, on the clock of whoever took it [s].
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    prompt: str
    stamp_s: float = 0.0


@dataclass(frozen=True)
class ActionChunk:
    """Commands for the next H control steps, predicted from one observation.

    Attributes:
        actions: float32 [H, D], absolute joint targets in the robot's units.
        start_s: when ``actions[0]`` is due, on the observation's clock [s].
        dt_s: time between two actions [s].
        timing_ms: what computing it cost [ms], by stage: ``preprocess``, ``prefix``, ``denoise``.
        prompt: of the observation it was inferred from; empty if unknown, which is taken for the present one.
    """

    actions: NDArray[np.float32]
    start_s: float
    dt_s: float
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    prompt: str = ""

    @property
    def horizon(self) -> int:
        """Number of actions H."""
        return len(self.actions)


@dataclass(frozen=True)
class ChunkPrefix:
    """What is decided already when inference starts: the beginning of the new chunk (real-time chunking).

    Attributes:
        actions: float32 [K, D], the not yet played actions of the chunk under way, absolute joint targets in the
            robot's units, in order; ``actions[0]`` is due at the observation's stamp, so at step 0 of the new chunk.
        delay: how many of them will have been played when the new chunk arrives, 0 to K; these are frozen.
        end: the step e from which on the new chunk is free, ``delay`` to H; between the two it is guided.
    """

    actions: NDArray[np.float32]
    delay: int
    end: int


@dataclass(frozen=True)
class Command:
    """One joint command.

    Attributes:
        positions: float32 [D] in the robot's units.
        stamp_s: when it is due [s].
        status: ``tracking`` the policy; ``holding`` for want of something, until it is back; ``fault``: standing until
            the safety layer is reset.
        reason: why it holds, has a fault or differs from the policy's action, in plain words; empty when it does not.
        margins: float32 [D], distance to the nearest position limit in each joint's unit; None where none was computed.
    """

    positions: NDArray[np.float32]
    stamp_s: float
    status: CommandStatus = "tracking"
    reason: str = ""
    margins: NDArray[np.float32] | None = None
