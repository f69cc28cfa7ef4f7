"""Where the gripper is for given joints, and which joints bring it to a pose (inverse kinematics by mink)."""

import mink
import numpy as np
from numpy.typing import NDArray

from pi0_control.robot import RobotSpec
from sims.scene import build_arm

POSITION_TOLERANCE_M = 2e-4
ORIENTATION_TOLERANCE_RAD = 2e-3
MAX_ITERATIONS = 30
_GRIPPER_DOWN = np.diag([-1.0, 1.0, -1.0])  # tool axes in the base frame with the gripper pointing down, yaw 0


def gripper_down(yaw_rad: float) -> NDArray[np.float64]:
    """Rotation [3, 3] of a gripper that points down with its fingers' axis turned by ``yaw_rad`` from +y."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]) @ _GRIPPER_DOWN


class ArmKinematics:
    """Kinematics of the bundled arm alone, in its base frame."""

    def __init__(self, robot: RobotSpec) -> None:
        self._configuration = mink.Configuration(build_arm(robot).compile())
        self._arm_joints = len(robot.joints) - 1
        self._tool = mink.FrameTask("tcp", "site", position_cost=1.0, orientation_cost=0.3, lm_damping=1e-4)
        self._limits = [mink.ConfigurationLimit(self._configuration.model)]

    def solve(
        self, joints: NDArray[np.floating], position_m: NDArray[np.floating], rotation: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Joints that bring the tool centre point to a pose, starting from ``joints``.

        Args:
            joints: arm joints to start from [rad], shape (6,).
            position_m: of the tool centre point, shape (3,).
            rotation: of the tool, shape (3, 3).

        Returns:
            Arm joints [rad], float32 (6,), within their limits; the nearest found where the pose is out of reach.
        """
        qpos = np.zeros(self._configuration.model.nq)
        qpos[: self._arm_joints] = joints
        self._configuration.update(qpos)
        target = mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(rotation), np.asarray(position_m, float))
        self._tool.set_target(target)
        for _ in range(MAX_ITERATIONS):
            error = self._tool.compute_error(self._configuration)
            if np.abs(error[:3]).max() < POSITION_TOLERANCE_M and np.abs(error[3:]).max() < ORIENTATION_TOLERANCE_RAD:
                break
            velocity = mink.solve_ik(
                self._configuration, [self._tool], dt=1.0, solver="daqp", damping=1e-6, limits=self._limits
            )
            self._configuration.integrate_inplace(velocity, 1.0)
        return self._configuration.q[: self._arm_joints].astype(np.float32)

    def forward(self, joints: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (3,) [m] and rotation (3, 3) of the tool for arm joints (6,) [rad]."""
        qpos = np.zeros(self._configuration.model.nq)
        qpos[: self._arm_joints] = joints
        self._configuration.update(qpos)
        pose = self._configuration.get_transform_frame_to_world("tcp", "site")
        return pose.translation(), pose.rotation().as_matrix()
