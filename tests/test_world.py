import mujoco
import numpy as np
import pytest

from pi0_control.robot import RobotSpec
from sims.scene import BLOCK_HALF_M, TRAY_CENTRE_M
from sims.world import BLOCK_REGION_M, BLOCK_SPACING_M, TabletopWorld

ROBOT = RobotSpec.from_yaml("arm6")


@pytest.fixture
def world() -> TabletopWorld:
    world = TabletopWorld(ROBOT)
    world.reset(np.random.default_rng(0))
    return world


def test_reset_is_a_function_of_the_seed(world) -> None:
    world.reset(np.random.default_rng(1))
    first = world.data.qpos.copy()
    world.drive(world.state + 0.1)
    world.reset(np.random.default_rng(1))
    np.testing.assert_array_equal(world.data.qpos, first)


def test_blocks_start_apart_in_their_region(world) -> None:
    for seed in range(20):
        world.reset(np.random.default_rng(seed))
        places = world.block_positions()[:, :2]
        assert (places >= BLOCK_REGION_M[0]).all()
        assert (places <= BLOCK_REGION_M[1]).all()
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(3, 1)]
        assert (gaps > BLOCK_SPACING_M).all()


def test_servos_follow_their_target(world) -> None:
    world.place_arm(ROBOT.home)
    target = ROBOT.home + np.array([0.2, 0.1, -0.1, 0.1, 0.1, 0.2, -0.5], np.float32)
    for _ in range(40):
        world.drive(target)
    np.testing.assert_allclose(world.state, target, atol=0.01)


def test_one_control_period_is_one_over_the_rate_and_keeps_to_velocity_limits(world) -> None:
    world.place_arm(ROBOT.home)
    start_s, start = world.time_s, world.state
    world.drive(ROBOT.upper)
    assert world.time_s - start_s == pytest.approx(ROBOT.dt_s)
    assert (np.abs(world.state - start) <= ROBOT.max_velocity * ROBOT.dt_s + 1e-6).all()


def test_commands_beyond_the_limits_stop_at_them(world) -> None:
    for _ in range(60):
        world.drive(ROBOT.upper + 10)
    assert (world.data.ctrl[:6] <= ROBOT.upper[:6] + 1e-6).all()


def test_contacts_and_tray(world) -> None:
    assert world.touched_blocks() == set()
    world.place_block("red", np.array([*TRAY_CENTRE_M, BLOCK_HALF_M + 0.005]))
    assert world.is_in_tray("red")
    assert not world.is_in_tray("blue")
    on_top = world.block_position("blue") + [0, 0, 2 * BLOCK_HALF_M - 1e-4]
    world.place_block("green", on_top)
    assert world.is_resting_on("green", "blue")
    assert not world.is_resting_on("red", "blue")


def test_block_yaw_is_modulo_a_quarter_turn(world) -> None:
    address = int(world.model.joint(world.model.body("red").jntadr[0]).qposadr[0])
    for yaw in (-0.3, 0.0, 0.5):
        for quarter in range(4):
            angle = yaw + quarter * np.pi / 2
            world.data.qpos[address + 3 : address + 7] = [np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
            mujoco.mj_forward(world.model, world.data)
            assert world.block_yaw("red") == pytest.approx(yaw, abs=1e-6)
