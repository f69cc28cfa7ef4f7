"""π0 and π0.5 policies on a robot: ``Pi0Agent`` acts, ``Pi0Policy`` predicts, ``RobotSpec`` says for which robot.

The names below are imported when first used, so that rooms that need no torch do not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pi0_control.control.agent import Pi0Agent
    from pi0_control.policy.policy import HoldPolicy, Pi0Policy, Policy
    from pi0_control.robot import RobotSpec
    from pi0_control.types import ActionChunk, Command, Observation

_HOMES = {
    "ActionChunk": "types",
    "Command": "types",
    "HoldPolicy": "policy.policy",
    "Observation": "types",
    "Pi0Agent": "control.agent",
    "Pi0Policy": "policy.policy",
    "Policy": "policy.policy",
    "RobotSpec": "robot",
}

__all__ = ["ActionChunk", "Command", "HoldPolicy", "Observation", "Pi0Agent", "Pi0Policy", "Policy", "RobotSpec"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pi0_control' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"pi0_control.{_HOMES[name]}"), name)
