"""Dialect: the messages of somebody's robot program in robot terms, and actions as it takes them."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi0_control.control.mapping import Layout, read_layout, write_entries
from pi0_control.errors import ConfigError, ObservationError
from pi0_control.robot import RobotSpec


class Dialect:
    """A layout without spaces to check it against: for clients of a policy server.

    Args:
        layout: where everything is; its ``is_clipped`` is not heeded, since bounds are the client's.
        robot: that of the policy.
        rates: joints that the policy moves by velocities or steps.
        prompt: the instruction where a message has none; the layout's own, if any, if empty.

    Raises:
        ConfigError: the layout has other cameras or joints than the robot, a joint twice, other rates than the policy,
            or actions in several places.
    """

    def __init__(self, layout: Layout, robot: RobotSpec, rates: Collection[str] = (), prompt: str = "") -> None:
        self.layout, self.robot, self.prompt = layout, robot, prompt
        joints = sorted(robot.joint_names)
        seen = sorted(name for entries in layout.state for name in entries.joints if name is not None)
        sent = sorted(name for entries in layout.action for name in entries.joints if name is not None)
        if not (seen == joints == sorted([*sent, *layout.uncommanded]) and {*layout.pictures} == {*robot.cameras}):
            raise ConfigError(
                f"The layout has cameras {sorted(layout.pictures)}, a state of {seen}, actions for {sent} and "
                f"{sorted(layout.uncommanded)} without; robot {robot.name!r} has cameras {sorted(robot.cameras)} and "
                f"joints {joints}, expected once each."
            )
        if {*layout.rates} != {*rates}:
            raise ConfigError(
                f"The policy moves {list(rates)} by velocities or steps, and clients of the layout take "
                f"{list(layout.rates)} so; expected the same."
            )
        if len(layout.action) != 1 or layout.action[0].key:
            raise ConfigError(f"The layout has {len(layout.action)} vectors of actions; expected one, without a key.")

    def read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """``images``, ``state`` and ``prompt`` in robot terms; cameras that the message lacks are left out.

        Raises:
            ObservationError: another key is missing, or an entry is not as the layout says.
        """
        try:
            with np.errstate(over="ignore"):
                return read_layout(message, self.layout, self.robot, may_lack_images=True, prompt=self.prompt)
        except (KeyError, ValueError) as error:  # vectors that do not belong together
            raise ObservationError(f"The observation is not as {[*message]} should be: {error}.") from error

    def actions(self, actions: ArrayLike) -> NDArray[np.float32]:
        """A chunk [H, D] as the client takes it, float32 [H, n]."""
        values = write_entries(np.asarray(actions, np.float64), self.layout.action[0], self.robot)
        return values.astype(np.float32)
