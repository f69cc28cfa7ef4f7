"""A scripted expert that solves every task from the true poses of the blocks.

It keeps no memory: what it does next follows from the world alone, so it can take over from any state.
"""

import numpy as np
from numpy.typing import NDArray

from sims.kinematics import gripper_down
from sims.scene import TRAY_CENTRE_M
from sims.tasks import Goal, Task
from sims.world import TabletopWorld

STEP_M = 0.024
"""How far the tool's set point leads the tool [m]; sets the speed."""
TURN_RAD = 0.12
HOVER_M = 0.07
CARRY_HEIGHT_M = 0.15
LIFTED_HEIGHT_M = 0.15
FUNNEL_SLOPE = 3.0
"""Above a goal the tool stays this many times its sideways distance, so that it comes down as it closes in."""
OPEN, CLOSED = 1.0, 0.0


class Expert:
    """Chooses joint targets for one task in one world."""

    def __init__(self, world: TabletopWorld, task: Task) -> None:
        self.world = world
        self.task = task

    def act(self, goal: Goal) -> NDArray[np.float32]:
        """Joint targets (7,) for the next control period."""
        position, yaw, opening = self.target(goal)
        return self.joints_towards(position, yaw, opening)

    def target(self, goal: Goal) -> tuple[NDArray[np.float64], float, float]:
        """Where the tool should go (3,) [m], with which yaw [rad], and the gripper opening."""
        world, block = self.world, self.world.block_position(goal.block)
        half = world.block_half(goal.block)
        if self.task.name == "Reach":
            return self._descend(_above(block, 0.9 * half)), world.tool_yaw, CLOSED
        if self.task.name == "Lift":
            place = _above(world.tool_position, LIFTED_HEIGHT_M - world.tool_position[2])
            return (place, world.tool_yaw, CLOSED) if world.is_grasped(goal.block) else self._grasp(goal.block)
        place = self._place_of(goal)
        if np.linalg.norm(block - place) < 0.35 * half or self.task.is_done(world, goal):
            return self._release(goal.block)
        if world.is_grasped(goal.block):
            return self._descend(place + world.tool_position - block, CARRY_HEIGHT_M), world.tool_yaw, CLOSED
        return self._grasp(goal.block)

    def joints_towards(self, position_m: NDArray[np.floating], yaw_rad: float, opening: float) -> NDArray[np.float32]:
        """Joint targets (7,) that bring the tool one step nearer to a pose."""
        tool, yaw = self.world.tool_position, self.world.tool_yaw
        step = position_m - tool
        step *= min(1.0, STEP_M / max(float(np.linalg.norm(step)), 1e-9))
        turn = np.clip(yaw_rad - yaw, -TURN_RAD, TURN_RAD)
        joints = self.world.kinematics.solve(self.world.state[:-1], tool + step, gripper_down(yaw + turn))
        return np.r_[joints, np.float32(opening)]

    def _place_of(self, goal: Goal) -> NDArray[np.float64]:
        half = self.world.block_half(goal.block)
        if goal.onto is None:
            return np.array([*TRAY_CENTRE_M, half + 0.008])
        return _above(self.world.block_position(goal.onto), half + self.world.block_half(goal.onto) + 0.002)

    def _grasp(self, block: str) -> tuple[NDArray[np.float64], float, float]:
        centre, yaw = self.world.block_position(block), self.world.block_yaw(block)
        offset = self.world.tool_position - centre
        is_around = np.linalg.norm(offset[:2]) < 0.010 and abs(offset[2]) < 0.010
        if is_around and abs(yaw - self.world.tool_yaw) < 0.15:
            return self.world.tool_position, self.world.tool_yaw, CLOSED
        return self._descend(centre), yaw, OPEN

    def _release(self, block: str) -> tuple[NDArray[np.float64], float, float]:
        """Open, then back off straight up."""
        up = 0.0 if block in self.world.touched_blocks() else 0.05
        return _above(self.world.tool_position, up), self.world.tool_yaw, OPEN

    def _descend(self, goal_m: NDArray[np.floating], hover_m: float = HOVER_M) -> NDArray[np.float64]:
        """The goal, or a point above it while the tool is off to the side."""
        aside = float(np.linalg.norm(goal_m[:2] - self.world.tool_position[:2]))
        height = min(max(FUNNEL_SLOPE * (aside - 0.006), 0.0), hover_m)
        return _above(goal_m, height)


def _above(point_m: NDArray[np.floating], height_m: float) -> NDArray[np.float64]:
    return np.add(point_m, (0.0, 0.0, height_m))
