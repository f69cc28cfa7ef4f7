import mujoco
import numpy as np
import pytest

from pi0_control.robot import RobotSpec
from sims.scene import BLOCK_COLOURS, build_arm, build_scene

ROBOT = RobotSpec.from_yaml("arm6")


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return build_scene(ROBOT).compile()


def test_joint_limits_are_those_of_the_robot_in_radians(model) -> None:
    for joint in ROBOT.joints[:-1]:
        np.testing.assert_allclose(model.joint(joint.name).range, [joint.lower, joint.upper])
        np.testing.assert_allclose(model.actuator(joint.name).ctrlrange, [joint.lower, joint.upper])
        np.testing.assert_allclose(model.actuator(joint.name).forcerange, [-joint.max_effort, joint.max_effort])


def test_physics_runs_at_500_hz(model) -> None:
    assert model.opt.timestep == 0.002


def test_robot_has_its_three_cameras_and_the_table_three_blocks(model) -> None:
    assert all(model.camera(name).id >= 0 for name in ROBOT.cameras)
    assert all(model.body(colour).id >= 0 for colour in BLOCK_COLOURS)


def test_scene_has_no_mesh(model) -> None:
    assert model.nmesh == 0


def test_arm_at_home_points_the_gripper_down_and_stays_there() -> None:
    model = build_arm(ROBOT).compile()
    data = mujoco.MjData(model)
    data.qpos[:6] = data.ctrl[:6] = ROBOT.home[:6]
    mujoco.mj_step(model, data, 500)
    np.testing.assert_allclose(data.qpos[:6], ROBOT.home[:6], atol=2e-3)
    np.testing.assert_allclose(data.site("tcp").xmat.reshape(3, 3)[:, 2], [0, 0, -1], atol=0.01)
