"""The simulated tabletop: robot, blocks and tray as one MuJoCo model, driven a control period at a time."""

import mujoco
import numpy as np
from numpy.typing import NDArray

from pi0_control.robot import RobotSpec
from sims.kinematics import ArmKinematics, gripper_down
from sims.scene import BLOCK_COLOURS, FINGER_TRAVEL_M, TIMESTEP_S, TRAY_CENTRE_M, TRAY_HALF_M, build_scene
from sims.variation import Variation, draw_half

BLOCK_REGION_M = ((0.30, -0.20), (0.52, 0.22))
"""Corners (x, y) of the part of the table where blocks start; the tray lies beside it."""
BLOCK_SPACING_M = 0.10
START_REGION_M = ((0.27, -0.16, 0.16), (0.46, 0.16, 0.34))
"""Corners (x, y, z) of the box where the tool centre point starts."""
VARIED_START_REGION_M = ((0.25, -0.20, 0.12), (0.48, 0.20, 0.38))
SCATTER_RAD = 0.03
"""Spread of a joint around the pose that looks straight down, where the arm is placed at random."""
_SERVO_UPDATES = 5  # times a control period that the servos' set point moves, so that motion is smooth


class TabletopWorld:
    """Physics of the scene; knows bodies and joints, no task, no instruction and no camera image.

    Attributes:
        robot: whose joints are driven.
        blocks: names of the blocks, in the order of :meth:`block_positions`.
        model, data: MuJoCo's own.
    """

    def __init__(self, robot: RobotSpec) -> None:
        self.robot = robot
        self.blocks = tuple(BLOCK_COLOURS)
        self.model = build_scene(robot).compile()
        self.data = mujoco.MjData(self.model)
        self.kinematics = ArmKinematics(robot)
        self._variation = Variation(self.model)
        arm = len(robot.joints) - 1
        self._scale = np.r_[np.ones(arm), FINGER_TRAVEL_M]  # joint unit of the robot -> of MuJoCo
        self._qpos = np.array([int(self.model.joint(name).qposadr[0]) for name in robot.joint_names])
        self._mirror = int(self.model.joint(f"{robot.joint_names[-1]}_mirror").qposadr[0])
        self._ctrl = np.array([self.model.actuator(name).id for name in robot.joint_names])
        self._block_qpos = [int(self.model.joint(self.model.body(b).jntadr[0]).qposadr[0]) for b in self.blocks]
        self._block_geom = {self.model.geom(block).id: block for block in self.blocks}
        self._finger_geoms = (self.model.geom("left_finger").id, self.model.geom("right_finger").id)
        self._gripper_geoms = (*self._finger_geoms, self.model.geom("palm").id)
        self._updates = max(1, round(robot.dt_s / TIMESTEP_S / _SERVO_UPDATES))
        self._path = list[NDArray[np.float64]]()  # set points to come, the next one last

    def reset(self, rng: np.random.Generator) -> None:
        """The plain scene with new block places and a new start pose, all drawn from ``rng``."""
        self._variation.reset()
        mujoco.mj_resetData(self.model, self.data)
        self._scatter_blocks(rng)
        start = rng.uniform(*START_REGION_M)
        joints = self.kinematics.solve(self.robot.home[:-1], start, gripper_down(rng.uniform(-0.3, 0.3)))
        self.place_arm(np.r_[joints, self.robot.home[-1]])

    def vary(self, aspects: frozenset[str], rng: np.random.Generator) -> None:
        """Change these aspects (:data:`sims.variation.ASPECTS`) of a scene that was just reset."""
        self._variation.draw_looks(aspects, rng)
        if "size" in aspects:
            for block, address in zip(self.blocks, self._block_qpos, strict=True):
                self._variation.resize(block, draw_half(rng))
                self.data.qpos[address + 2] = self.block_half(block)
        if "start" in aspects:
            self.place_tool(rng.uniform(*VARIED_START_REGION_M), rng.uniform(-0.6, 0.6), rng)
        if "distractors" in aspects:
            places = [self.data.qpos[address : address + 2] for address in self._block_qpos]
            self._variation.lay_distractors(self.data, places, rng)
        mujoco.mj_forward(self.model, self.data)

    def _scatter_blocks(self, rng: np.random.Generator) -> None:
        """Lay the blocks on free places of the table, with a small turn each."""
        places: list[NDArray[np.float64]] = []
        while len(places) < len(self.blocks):
            place = rng.uniform(*BLOCK_REGION_M)
            if all(np.linalg.norm(place - other) > BLOCK_SPACING_M for other in places):
                places.append(place)
        for block, address, place in zip(self.blocks, self._block_qpos, places, strict=True):
            yaw = rng.uniform(-0.3, 0.3)
            turn = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
            self.data.qpos[address : address + 7] = [*place, self.block_half(block), *turn]

    def place_block(self, block: str, position_m: NDArray[np.floating]) -> None:
        """Put a block somewhere, upright and at rest."""
        address = self._block_qpos[self.blocks.index(block)]
        self.data.qpos[address : address + 7] = [*position_m, 1, 0, 0, 0]
        mujoco.mj_forward(self.model, self.data)

    def place_arm(self, positions: NDArray[np.floating]) -> None:
        """Put the robot at joint positions (7,) at rest, without simulating how it got there."""
        self.data.qpos[self._qpos] = positions * self._scale
        self.data.qpos[self._mirror] = self.data.qpos[self._qpos[-1]]
        self.data.ctrl[self._ctrl] = positions * self._scale
        self.data.qvel[:] = 0
        self._path = []
        mujoco.mj_forward(self.model, self.data)

    def place_tool(self, position_m: NDArray[np.floating], turn_rad: float, rng: np.random.Generator) -> None:
        """Put the robot where its tool is about there and looks about down, turned so, with some gripper opening."""
        joints = self.kinematics.solve(self.robot.home[:-1], position_m, gripper_down(turn_rad))
        joints = joints + rng.normal(0, SCATTER_RAD, len(joints)).astype(np.float32)
        self.place_arm(np.clip(np.r_[joints, rng.uniform(0, 1)], self.robot.lower, self.robot.upper))

    def drive(self, positions: NDArray[np.floating]) -> None:
        """Simulate one control period towards joint positions (7,), within position and velocity limits."""
        self.aim(positions)
        for _ in range(_SERVO_UPDATES):
            self.advance()
        self.refresh()

    def aim(self, positions: NDArray[np.floating], duration_s: float | None = None) -> None:
        """Lead the servos to joint positions (7,) in ``duration_s``, a control period if None, as far as limits let."""
        robot = self.robot
        updates = _SERVO_UPDATES if duration_s is None else max(1, round(duration_s / self.servo_period_s))
        start = self.data.ctrl[self._ctrl] / self._scale
        reach = robot.max_velocity * (robot.dt_s * updates / _SERVO_UPDATES)
        goal = start + np.clip(np.clip(positions, robot.lower, robot.upper) - start, -reach, reach)
        self._path = [(start + (goal - start) * update / updates) * self._scale for update in range(updates, 0, -1)]

    def advance(self) -> None:
        """Simulate one period of the servos, on the way to what was aimed at or standing there."""
        if self._path:
            self.data.ctrl[self._ctrl] = self._path.pop()
        mujoco.mj_step(self.model, self.data, self._updates)

    def refresh(self) -> None:
        """Contacts and poses of this moment, not of half a step ago."""
        mujoco.mj_forward(self.model, self.data)

    @property
    def state(self) -> NDArray[np.float32]:
        """Measured joint positions [rad] and gripper opening 0..1, float32 (7,)."""
        return (self.data.qpos[self._qpos] / self._scale).astype(np.float32)

    @property
    def set_point(self) -> NDArray[np.float32]:
        """Where the servos drive the joints to now, [rad] and gripper opening 0..1, float32 (7,)."""
        return (self.data.ctrl[self._ctrl] / self._scale).astype(np.float32)

    @property
    def servo_period_s(self) -> float:
        """Time between two set points of the servos [s]."""
        return self._updates * TIMESTEP_S

    @property
    def time_s(self) -> float:
        """Simulated time since the last reset [s]."""
        return float(self.data.time)

    @property
    def tool_position(self) -> NDArray[np.float64]:
        """Tool centre point (3,) [m]."""
        return self.data.site("tcp").xpos.copy()

    @property
    def tool_yaw(self) -> float:
        """Turn of the fingers' axis from +y about the vertical [rad]."""
        finger_axis = self.data.site("tcp").xmat.reshape(3, 3)[:, 1]
        return float(np.arctan2(-finger_axis[0], finger_axis[1]))

    def block_half(self, block: str) -> float:
        """Half the edge of a block [m]."""
        return float(self.model.geom(block).size[0])

    def block_position(self, block: str) -> NDArray[np.float64]:
        """Centre of a block (3,) [m]."""
        return self.data.body(block).xpos.copy()

    def block_positions(self) -> NDArray[np.float32]:
        """Centres of all blocks, float32 [blocks, 3] [m]."""
        return np.array([self.data.body(block).xpos for block in self.blocks], np.float32)

    def block_yaw(self, block: str) -> float:
        """Turn of a block about the vertical, in [-pi/4, pi/4): a cube looks the same every quarter turn [rad]."""
        axis = self.data.body(block).xmat.reshape(3, 3)[:2, 0]
        return float((np.arctan2(axis[1], axis[0]) + np.pi / 4) % (np.pi / 2) - np.pi / 4)

    def block_speed(self, block: str) -> float:
        """Speed of a block's centre [m/s]."""
        return float(np.linalg.norm(self.data.body(block).cvel[3:]))

    def touched_blocks(self) -> set[str]:
        """Blocks in contact with the gripper."""
        return {block for block, geoms in self._contacts().items() if geoms & set(self._gripper_geoms)}

    def is_grasped(self, block: str) -> bool:
        """Whether both fingers press on the block."""
        return self._contacts().get(block, set()) >= set(self._finger_geoms)

    def is_resting_on(self, block: str, other: str) -> bool:
        """Whether two blocks are in contact."""
        return self.model.geom(other).id in self._contacts().get(block, set())

    def is_in_tray(self, block: str) -> bool:
        """Whether the block's centre is within the tray's walls and below their rim."""
        x, y, z = self.block_position(block) - [*TRAY_CENTRE_M, 0]
        half = self.block_half(block)
        return bool(max(abs(x), abs(y)) < TRAY_HALF_M - 0.5 * half and z < 2 * half)

    def _contacts(self) -> dict[str, set[int]]:
        """Geoms in contact with each block."""
        touching: dict[str, set[int]] = {}
        for first, second in self.data.contact.geom[: self.data.ncon].tolist():
            for block_geom, geom in ((first, second), (second, first)):
                if block_geom in self._block_geom:
                    touching.setdefault(self._block_geom[block_geom], set()).add(geom)
        return touching
