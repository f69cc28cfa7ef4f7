"""Policies of servers, wherever a command asks for a policy: ``ws://host:port`` or ``wss://host:port``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pi0_control.robot import RobotSpec
    from pi0_control.serving import RemotePolicy


def is_address(name: str) -> bool:
    """Whether this is the address of a server and not the name or directory of a policy."""
    return name.startswith(("ws://", "wss://"))


def connect(address: str, robot: "RobotSpec | None", deadline_s: float) -> "RemotePolicy":
    """The policy of a server for this robot; each answer may take ``deadline_s``. Raises as RemotePolicy does."""
    from pi0_control.serving import RemotePolicy

    return RemotePolicy(address, robot=robot, deadline_s=deadline_s)
