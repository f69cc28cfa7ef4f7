import numpy as np
import pytest

from pi0_control.robot import RobotSpec
from sims.kinematics import ArmKinematics, gripper_down

ROBOT = RobotSpec.from_yaml("arm6")


@pytest.fixture(scope="module")
def kinematics() -> ArmKinematics:
    return ArmKinematics(ROBOT)


def test_solution_reaches_the_pose_within_limits(kinematics) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        position, rotation = rng.uniform((0.30, -0.3, 0.02), (0.5, 0.2, 0.25)), gripper_down(rng.uniform(-0.4, 0.4))
        joints = kinematics.solve(ROBOT.home[:-1], position, rotation)
        reached, turned = kinematics.forward(joints)
        np.testing.assert_allclose(reached, position, atol=1e-3)
        np.testing.assert_allclose(turned, rotation, atol=0.01)
        assert (joints >= ROBOT.lower[:-1]).all()
        assert (joints <= ROBOT.upper[:-1]).all()


def test_pose_out_of_reach_gives_the_nearest_within_limits(kinematics) -> None:
    joints = kinematics.solve(ROBOT.home[:-1], np.array([2.0, 0, 0.2]), gripper_down(0))
    assert np.isfinite(joints).all()
    assert (joints >= ROBOT.lower[:-1] - 1e-6).all()
    assert (joints <= ROBOT.upper[:-1] + 1e-6).all()


def test_gripper_down_turns_the_finger_axis() -> None:
    np.testing.assert_allclose(gripper_down(np.pi / 2)[:, 1], [-1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(gripper_down(0.3)[:, 2], [0, 0, -1], atol=1e-12)
