"""Finding: one thing that does not fit between a policy and what a robot shows."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit.

    Attributes:
        severity: an ``error`` makes the policy act wrongly; a ``warning`` may be as it should.
        name: of the fault, such as ``joint order``.
        where: the state, the actions, a joint or a camera.
        seen: what the recording or the checkpoint has.
        expected: what the policy was trained on.
        change: what to do about it.
    """

    severity: Literal["error", "warning"]
    name: str
    where: str
    seen: str
    expected: str
    change: str
